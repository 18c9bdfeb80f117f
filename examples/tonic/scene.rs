//! The client: what it tries, and what comes of it.

use std::{error::Error, net::SocketAddr};

use tonic::{Request, Response, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    payments::{ListRequest, PayRequest, Payment, Simulate, payments_client::PaymentsClient},
    say,
};

/// Plays the scene against the server at `addr`; an error says what went otherwise.
pub(crate) async fn play(addr: SocketAddr) -> Result<(), Box<dyn Error>> {
    let mut client = Client(PaymentsClient::connect(format!("http://{addr}")).await?);

    say("A payment, and its retry:");
    tell(client.pay("order-1", 100, Simulate::default()).await);
    tell(client.pay("order-1", 100, Simulate::default()).await);

    let paid = client.0.list(ListRequest {}).await?.into_inner().payments;
    say(format_args!("Payments: {}", paid.len()));
    Ok(())
}

#[derive(Clone)]
struct Client(PaymentsClient<Channel>);

impl Client {
    async fn pay(
        &mut self,
        key: &str,
        amount: u64,
        simulate: Simulate,
    ) -> Result<Response<Payment>, Status> {
        let request = PayRequest {
            amount,
            currency: "EUR".to_owned(),
            simulate: Some(simulate),
        };
        self.0.pay(keyed(key, request)?).await
    }
}

/// A request with a key, and with what says who its caller is.
fn keyed<T>(key: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let key = MetadataValue::try_from(key);
    let key = key.map_err(|_| Status::invalid_argument("no key"))?;
    let metadata = request.metadata_mut();
    metadata.insert("idempotency-key", key);
    metadata.insert("x-api-key", MetadataValue::from_static("alice"));
    Ok(request)
}

fn tell(result: Result<Response<Payment>, Status>) {
    match result {
        Ok(response) => {
            let replayed = response.metadata().contains_key("idempotent-replayed");
            let how = if replayed { "replayed" } else { "paid" };
            let Payment { id, attempt, .. } = response.into_inner();
            say(format_args!("  {how}: payment {id}, attempt {attempt}"));
        }
        Err(status) => say(format_args!("  {:?}: {}", status.code(), status.message())),
    }
}
