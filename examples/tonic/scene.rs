//! The client: what it tries, and what comes of it.

use std::{error::Error, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    payments::{
        ListRequest, PartsRequest, PayRequest, Payment, Simulate, payments_client::PaymentsClient,
    },
    say,
};

/// Plays the scene against the server at `addr`; an error says what went otherwise.
pub(crate) async fn play(addr: SocketAddr) -> Result<(), Box<dyn Error>> {
    let mut client = Client(PaymentsClient::connect(format!("http://{addr}")).await?);
    let fast = Simulate::default();

    say("A payment, and its retry:");
    tell(client.pay("order-1", 100, fast).await);
    tell(client.pay("order-1", 100, fast).await);

    say("The same key for another payment:");
    tell(client.pay("order-1", 999, fast).await);

    say("Three at once:");
    let slow = Simulate {
        delay_ms: 500,
        ..fast
    };
    let (mut two, mut three) = (client.clone(), client.clone());
    let (first, second, third) = tokio::join!(
        client.pay("order-2", 50, slow),
        two.pay("order-2", 50, slow),
        three.pay("order-2", 50, slow),
    );
    let mut race = [first, second, third];
    // The one that ran comes first, whichever it was.
    race.sort_by_key(Result::is_err);
    race.into_iter().for_each(tell);

    say("One that fails once, by a client that retries what it may:");
    let fails = Simulate {
        fail_times: 1,
        ..fast
    };
    tell(client.pay_for_sure("order-3", 7, fails).await);

    say("A client that waits for 100 ms, where the server takes 500; and its retries:");
    let mut hasty = Request::new(Client::payment(5, slow));
    hasty.set_timeout(Duration::from_millis(100));
    let gave_up = client.0.pay(keyed("order-4", hasty)?).await;
    say(format_args!("  gave up: {}", gave_up.is_err()));
    tell(client.pay_for_sure("order-4", 5, slow).await);

    say("A mistake, and no key at all:");
    tell(client.pay("order-5", 0, fast).await);
    let payment = Client::payment(5, fast);
    tell(client.0.pay(Request::new(payment)).await);

    say("A batch, streamed by the client; then again:");
    for _ in 0..2 {
        let payments = stream::iter([10, 20, 30].map(|n| Client::payment(n, fast)));
        let request = keyed("batch-1", Request::new(payments))?;
        let answer = client.0.pay_batch(request).await?;
        let how = how(&answer);
        let count = answer.into_inner().payments.len();
        say(format_args!("  {how}: {count} payments"));
    }

    say("A payment in three parts, streamed by the server; then again:");
    for _ in 0..2 {
        let parts = PartsRequest {
            amount: 100,
            currency: "EUR".to_owned(),
            parts: 3,
            delay_ms: 0,
        };
        let answer = client
            .0
            .pay_in_parts(keyed("parts-1", Request::new(parts))?);
        let answer = answer.await?;
        let how = how(&answer);
        let parts: Vec<_> = answer.into_inner().try_collect().await?;
        let amounts: Vec<_> = parts.iter().map(|part| part.amount).collect();
        say(format_args!("  {how}: {amounts:?}"));
    }

    say("A call whose two sides wait for each other cannot have a key, and is told so:");
    // One payment; whether there are more, the client says when it has heard of the first.
    let conversation = || {
        let (end, ended) = oneshot::channel::<()>();
        let more = stream::pending().take_until(ended);
        (end, stream::iter([Client::payment(1, fast)]).chain(more))
    };
    let (_end, payments) = conversation();
    let request = keyed("exchange-1", Request::new(payments))?;
    if let Err(status) = client.0.exchange(request).await {
        tell(Err(status));
    }
    say("Without a key it works:");
    let (end, payments) = conversation();
    let mut answers = client.0.exchange(payments).await?.into_inner();
    let answer = answers.message().await?;
    tell(
        answer
            .map(Response::new)
            .ok_or(Status::internal("no answer")),
    );
    drop(end);

    let paid = client.0.list(ListRequest {}).await?.into_inner().payments;
    say(format_args!("Payments: {}", paid.len()));
    let expected = [100, 50, 7, 5, 10, 20, 30, 34, 33, 33, 1];
    match paid.iter().map(|payment| payment.amount).eq(expected) {
        true => Ok(()),
        false => Err("those were not the payments".into()),
    }
}

#[derive(Clone)]
struct Client(PaymentsClient<Channel>);

impl Client {
    fn payment(amount: u64, simulate: Simulate) -> PayRequest {
        PayRequest {
            amount,
            currency: "EUR".to_owned(),
            simulate: Some(simulate),
        }
    }

    async fn pay(
        &mut self,
        key: &str,
        amount: u64,
        simulate: Simulate,
    ) -> Result<Response<Payment>, Status> {
        let request = Request::new(Self::payment(amount, simulate));
        self.0.pay(keyed(key, request)?).await
    }

    /// Tries again what may be tried again, under the same key: a call that did not succeed and did
    /// not fail for good, either.
    async fn pay_for_sure(
        &mut self,
        key: &str,
        amount: u64,
        simulate: Simulate,
    ) -> Result<Response<Payment>, Status> {
        for _ in 0..10 {
            match self.pay(key, amount, simulate).await {
                Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {
                    // What the server says of it, or else a while.
                    let details = status.get_error_details();
                    let delay = details.retry_info().and_then(|retry| retry.retry_delay);
                    tell(Err(status));
                    tokio::time::sleep(delay.unwrap_or(Duration::from_millis(100))).await;
                }
                answer => return answer,
            }
        }
        Err(Status::unavailable("ten tries are enough"))
    }
}

/// A request with a key, and with what says who its caller is.
fn keyed<T>(key: &str, mut request: Request<T>) -> Result<Request<T>, Status> {
    let key = MetadataValue::try_from(key);
    let key = key.map_err(|_| Status::invalid_argument("this cannot be a key"))?;
    let metadata = request.metadata_mut();
    metadata.insert("idempotency-key", key);
    metadata.insert("x-api-key", MetadataValue::from_static("alice"));
    Ok(request)
}

fn how<T>(response: &Response<T>) -> &'static str {
    match response.metadata().contains_key("idempotent-replayed") {
        true => "replayed",
        false => "paid",
    }
}

fn tell(result: Result<Response<Payment>, Status>) {
    match result {
        Ok(response) => {
            let how = how(&response);
            let Payment { id, attempt, .. } = response.into_inner();
            say(format_args!("  {how}: payment {id}, attempt {attempt}"));
        }
        Err(status) => {
            let (code, message) = (status.code(), status.message());
            // The reason is there for programs.
            let details = status.get_error_details();
            match details.error_info() {
                Some(info) => say(format_args!("  {code:?}, {}: {message}", info.reason)),
                None => say(format_args!("  {code:?}: {message}")),
            }
        }
    }
}
