//! Replies of tonic handlers, where they become records by another way than the server's:
//! [`Transaction::commit_reply`] and [`Probed::reply`].

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::Status;

use super::takeover::Probed;
use crate::{
    engine::{CommitError, Transaction},
    store::DatabaseTransaction,
};

/// What a tonic server keeps from the metadata of handlers, since it says these things itself.
const SAID_BY_THE_SERVER: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::TE,
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-message-type"),
];

/// A whole answer: what a tonic server makes of a reply, and does not compress.
struct Encoded {
    response: Response<Bytes>,
    trailers: HeaderMap,
}

impl Encoded {
    /// `None` where the message is longer than gRPC can say (4 GiB).
    fn new<M: Message>(reply: &tonic::Response<M>) -> Option<Self> {
        let message = reply.get_ref();
        let len = message.encoded_len();
        let mut body = BytesMut::with_capacity(5 + len);
        body.put_u8(0);
        body.put_u32(u32::try_from(len).ok()?);
        message.encode(&mut body).ok()?;

        let mut response = Response::new(body.freeze());
        let headers = response.headers_mut();
        *headers = reply.metadata().clone().into_headers();
        for name in SAID_BY_THE_SERVER {
            headers.remove(name);
        }
        let content_type = HeaderValue::from_static("application/grpc");
        headers.insert(header::CONTENT_TYPE, content_type);
        let status = HeaderName::from_static("grpc-status");
        let ok = HeaderValue::from_static("0");
        Some(Self {
            response,
            trailers: HeaderMap::from_iter([(status, ok)]),
        })
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
impl<T: DatabaseTransaction> Transaction<T> {
    /// Completes the record with this reply and commits: what [`commit`](Self::commit) is to an HTTP
    /// handler, this is to a tonic handler that replies with one message (P7).
    ///
    /// Recorded are the metadata, the message and the status `OK`. The caller gets that, not
    /// compressed, and so does every retry, whatever the handler returns. A handler that returns the
    /// result of this cannot forget to commit; a [`CommitError`] becomes a [`Status`] by `?`.
    ///
    #[cfg_attr(
        feature = "sqlite",
        doc = "```
use sqlx::SqlitePool;
use tonic::{Request, Response, Status};
use tower_idempotency::Execution;

/// Not to be compared with the messages that are generated: any `prost::Message` will do.
#[derive(Clone, PartialEq, prost::Message)]
struct Payment {
    #[prost(uint64, tag = \"1\")]
    amount: u64,
}

async fn pay(
    pool: &SqlitePool,
    request: Request<Payment>,
) -> Result<Response<Payment>, Status> {
    let (_, extensions, payment) = request.into_parts();
    let execution: &Execution = extensions
        .get()
        .ok_or_else(|| Status::invalid_argument(\"send a key\"))?;
    let unavailable = |_| Status::unavailable(\"the database does not answer\");
    let mut transaction = execution.transaction(pool.begin().await.map_err(unavailable)?)?;
    sqlx::query(\"INSERT INTO payments (amount) VALUES (7)\")
        .execute(&mut *transaction)
        .await
        .map_err(unavailable)?;
    Ok(transaction.commit_reply(Response::new(payment)).await?)
}
```"
    )]
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After any but [`Unknown`](CommitError::Unknown) it is certain that nothing
    /// was written.
    ///
    /// # Cancellation
    ///
    /// When this is dropped, the transaction is committed or rolled back, as a whole, and the layer
    /// finds out which before it answers.
    pub async fn commit_reply<M: Message>(
        self,
        reply: tonic::Response<M>,
    ) -> Result<tonic::Response<M>, CommitError> {
        let Some(Encoded { response, trailers }) = Encoded::new(&reply) else {
            return Err(CommitError::Answer("the message is too long".into()));
        };
        let trailers = async { Some(Ok(trailers)) };
        let answer = response.map(|body| Full::new(body).with_trailers(trailers));
        let _ = self.commit(answer).await?;
        Ok(reply)
    }
}

/// `ABORTED` where a new attempt may succeed at once, `UNAVAILABLE` where the database could not be
/// asked, and else `INTERNAL`: the key counts as failed.
///
/// The database's own words are not in the message; the error is the status' source.
#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
impl From<CommitError> for Status {
    fn from(error: CommitError) -> Self {
        let message = error.to_string();
        let mut status = match &error {
            CommitError::Superseded | CommitError::Gone | CommitError::Refused(_) => {
                Self::aborted(message)
            }
            CommitError::Store(_) | CommitError::Unknown(_) => Self::unavailable(message),
            CommitError::OtherStore | CommitError::Answer(_) | CommitError::AlreadyCommitted => {
                Self::internal(message)
            }
        };
        status.set_source(Arc::new(error));
        status
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
impl Probed {
    /// It did its work; this is the reply of a tonic method that has one message, to be recorded and
    /// sent.
    ///
    /// An error that is to be recorded is `Probed::Completed(status.into_http())`.
    ///
    /// # Panics
    ///
    /// If the message is longer than 4 GiB.
    #[must_use]
    pub fn reply<M: Message>(reply: &tonic::Response<M>) -> Self {
        let encoded = Encoded::new(reply).expect("a message is shorter than 4 GiB");
        let mut response = encoded.response;
        response.extensions_mut().insert(encoded.trailers);
        Self::Completed(response)
    }
}
