//! The routes that are measured: what an endpoint for JSON does at least.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use serde::{Deserialize, Serialize};

use crate::requests::PATH;

#[derive(Deserialize)]
pub(crate) struct Payment {
    pub(crate) amount: u64,
    currency: String,
    reference: String,
}

#[derive(Serialize)]
struct Receipt {
    id: &'static str,
    status: &'static str,
    amount: u64,
    currency: String,
    reference_length: usize,
}

/// How often the handler ran.
#[derive(Clone, Default)]
pub(crate) struct Executions(Arc<AtomicU64>);

impl Executions {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub(crate) fn routes(executions: Executions) -> Router {
    Router::new().route(PATH, post(pay)).with_state(executions)
}

async fn pay(
    State(executions): State<Executions>,
    Json(payment): Json<Payment>,
) -> impl IntoResponse {
    executions.0.fetch_add(1, Relaxed);
    let receipt = Receipt {
        id: "pay_7f3k29",
        status: "paid",
        amount: payment.amount,
        currency: payment.currency,
        reference_length: payment.reference.len(),
    };
    let location = [(header::LOCATION, "/payments/pay_7f3k29")];
    (StatusCode::CREATED, location, Json(receipt))
}
