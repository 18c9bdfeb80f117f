//! The service: it knows of keys only what it tells.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataValue};
use tower_idempotency::Execution;

use crate::payments::{
    Batch, ListReply, ListRequest, PartsRequest, PayRequest, Payment, Simulate,
    payments_server::Payments,
};

/// The longest delay that a client may ask for, in milliseconds.
const MAX_DELAY_MS: u32 = 60_000;

/// What was paid.
#[derive(Clone, Default)]
pub(crate) struct Bank(Arc<Mutex<Vec<Payment>>>);

impl Bank {
    pub(crate) fn count(&self) -> usize {
        self.paid(|payments| payments.len())
    }

    fn paid<T>(&self, work: impl FnOnce(&mut Vec<Payment>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The effect.
    fn pay(&self, amount: u64, currency: &str, operation: &Operation) -> Payment {
        self.paid(|payments| {
            let payment = Payment {
                id: payments.len() as u64 + 1,
                amount,
                currency: currency.to_owned(),
                attempt: operation.attempt,
                key: operation.key.clone(),
            };
            payments.push(payment.clone());
            payment
        })
    }
}

/// Under which key a call runs, if any.
#[derive(Clone, Default)]
struct Operation {
    key: String,
    attempt: u32,
}

impl Operation {
    fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Execution>() {
            Some(execution) => Self {
                key: execution.key().to_owned(),
                attempt: execution.attempt(),
            },
            None => Self::default(),
        }
    }
}

/// A mistake, before anything is done: the key is free again.
fn check(amount: u64, currency: &str) -> Result<(), Status> {
    if amount == 0 {
        return Err(Status::invalid_argument("how much?"));
    }
    if currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err(Status::invalid_argument(
            "a currency has three capital letters",
        ));
    }
    Ok(())
}

async fn delay(delay_ms: u32) {
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms.min(MAX_DELAY_MS).into())).await;
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Payment, Status>> + Send>>;

#[tonic::async_trait]
impl Payments for Bank {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<Payment>, Status> {
        let operation = Operation::of(request.extensions());
        let PayRequest {
            amount,
            currency,
            simulate,
        } = request.into_inner();
        check(amount, &currency)?;
        let Simulate {
            delay_ms,
            fail_times,
        } = simulate.unwrap_or_default();
        delay(delay_ms).await;
        if (1..=fail_times).contains(&operation.attempt) {
            return Err(Status::unavailable("simulated failure"));
        }
        let payment = self.pay(amount, &currency, &operation);
        let receipt = format!("paid {amount} {currency}").into_bytes();
        let mut response = Response::new(payment);
        // What a client gets again with a replay.
        let metadata = response.metadata_mut();
        metadata.insert("payment-status", MetadataValue::from_static("succeeded"));
        metadata.insert_bin("receipt-bin", MetadataValue::from_bytes(&receipt));
        Ok(response)
    }

    async fn pay_batch(
        &self,
        request: Request<Streaming<PayRequest>>,
    ) -> Result<Response<Batch>, Status> {
        let operation = Operation::of(request.extensions());
        let requests: Vec<PayRequest> = request.into_inner().try_collect().await?;
        for request in &requests {
            check(request.amount, &request.currency)?;
        }
        let pay = |request: &PayRequest| self.pay(request.amount, &request.currency, &operation);
        let payments = requests.iter().map(pay).collect();
        Ok(Response::new(Batch { payments }))
    }

    type PayInPartsStream = Answers;

    async fn pay_in_parts(
        &self,
        request: Request<PartsRequest>,
    ) -> Result<Response<Answers>, Status> {
        let operation = Operation::of(request.extensions());
        let PartsRequest {
            amount,
            currency,
            parts,
            delay_ms,
        } = request.into_inner();
        check(amount, &currency)?;
        if parts == 0 || u64::from(parts) > amount {
            return Err(Status::invalid_argument("so many parts cannot be made"));
        }
        let bank = self.clone();
        let part = move |n: u32| {
            let (bank, operation, currency) = (bank.clone(), operation.clone(), currency.clone());
            let share = amount / u64::from(parts) + u64::from(n == 0) * (amount % u64::from(parts));
            async move {
                delay(delay_ms).await;
                Ok(bank.pay(share, &currency, &operation))
            }
        };
        Ok(Response::new(Box::pin(stream::iter(0..parts).then(part))))
    }

    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<PayRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let operation = Operation::of(request.extensions());
        let bank = self.clone();
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            check(request.amount, &request.currency)?;
            Ok(bank.pay(request.amount, &request.currency, &operation))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list(&self, _request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let payments = self.paid(|payments| payments.clone());
        Ok(Response::new(ListReply { payments }))
    }
}
