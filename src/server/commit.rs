//! An answer that is committed in the handler's own transaction: [`Transaction::commit`] and
//! [`Committed`].

use std::error::Error;

use bytes::Bytes;
use http::{Response, response};
use http_body::Body;

use super::{
    answer::{is_exact, is_stream},
    body::{self, Collected, ResponseBody, Trailers},
    codec,
    config::{Config, Form, told},
};
use crate::{
    engine::{Answer, CommitError, Permit, Transaction},
    key::StoreKey,
    store::DatabaseTransaction,
    telemetry::Outcome,
};

/// The proof that an answer was committed, with the answer: what the handler returns.
///
/// A handler whose answers are of this type cannot answer without having committed. Its caller gets
/// the committed answer, whatever layers between the handler and this crate's make of it. In axum
/// this is a response (feature `axum`); elsewhere [`into_inner`](Self::into_inner) is.
#[derive(Debug)]
#[must_use = "the handler's answer"]
pub struct Committed(Response<Bytes>);

impl Committed {
    /// The committed answer, without trailers.
    #[must_use]
    pub fn into_inner(self) -> Response<Bytes> {
        self.0
    }
}

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum::response::IntoResponse for Committed {
    fn into_response(self) -> axum::response::Response {
        self.0.map(axum::body::Body::from)
    }
}

/// What the caller gets.
struct Kept {
    parts: response::Parts,
    body: Bytes,
    trailers: Trailers,
    exact: bool,
    permit: Permit,
}

impl<T: DatabaseTransaction> Transaction<T> {
    /// Completes the record with this answer and commits: the handler's rows, the record and the
    /// answer, or none of them (P7).
    ///
    /// The answer is recorded whatever its status, since the rows are: no verdict is asked for. The
    /// caller gets it, and so does every retry, whatever happens afterwards: an error, a panic, a
    /// layer that changes the answer. Make it the last thing that the handler does. With the feature
    /// `grpc`, a tonic handler has `commit_reply`.
    ///
    /// It succeeds also after the lease ended, as long as nobody took over.
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
    pub async fn commit<B>(self, answer: Response<B>) -> Result<Committed, CommitError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let front = self.execution().front().cloned();
        let config = front.as_deref().and_then(|front| front.downcast_ref());
        let config: &Config = config.ok_or_else(|| refused("this is no request's execution"))?;

        let (parts, body) = answer.into_parts();
        if is_stream(&parts) {
            return Err(refused("it is a stream"));
        }
        let exact = is_exact(false, &parts, &body);
        let (limit, timeout) = (config.response_limit, config.response_timeout);
        let collected = body::collect(body, limit, timeout, config.engine.work().bytes());
        let (frames, trailers, permit) = match collected.await {
            Collected::Whole {
                frames,
                trailers,
                permit,
            } => (frames, trailers, permit),
            Collected::Partial { .. } => {
                return Err(refused("it is larger than the limit, or too slow"));
            }
            Collected::Broken { error, .. } => return Err(CommitError::Answer(error.into())),
        };
        let payload = codec::encode(
            &parts,
            &frames,
            trailers.as_deref(),
            exact,
            config.replay_set_cookie,
        );
        let payload = payload.ok_or_else(|| refused("it is not a final one"))?;

        let body = match &*frames {
            [] => Bytes::new(),
            [body] => body.clone(),
            frames => frames.concat().into(),
        };
        let seen = Response::from_parts(parts, body);
        let (parts, body) = seen.clone().into_parts();
        let kept = Kept {
            parts,
            body,
            trailers,
            exact,
            permit,
        };
        let kept = Box::new(kept);
        self.commit_answer(Answer { payload, kept }).await?;
        Ok(Committed(seen))
    }
}

fn refused(why: &'static str) -> CommitError {
    CommitError::Answer(why.into())
}

impl Config {
    /// The caller's view of a committed answer.
    pub(super) fn committed<B>(
        &self,
        form: Form,
        key: &StoreKey,
        answer: Answer,
    ) -> Response<ResponseBody<B>> {
        match answer.kept.downcast::<Kept>() {
            Ok(kept) => {
                let body = kept.body;
                let body =
                    ResponseBody::buffered(body, kept.trailers, kept.exact, Some(kept.permit));
                told(
                    Response::from_parts(kept.parts, body),
                    Some(key),
                    Outcome::Completed,
                )
            }
            // Only `commit` puts an answer there for a request.
            Err(_) => self.replay(form, key, &answer.payload),
        }
    }
}
