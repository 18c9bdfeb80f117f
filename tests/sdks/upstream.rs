//! A payment service that knows nothing of idempotency, and counts what it does.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::AbortHandle};

/// Names a request that the upstream is to hold: see [`Held`].
pub(crate) const HOLD: &str = "x-hold";

/// What was done: for each operation, by its own name, the payments that it caused.
pub(crate) type Effects = BTreeMap<String, Vec<String>>;

#[derive(Debug, Default)]
pub(crate) struct Upstream {
    effects: Mutex<Effects>,
    payments: AtomicU64,
    holds: Mutex<HashMap<String, Arc<Hold>>>,
}

/// A request that stays in execution, its effect done, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Hold>);

#[derive(Debug, Default)]
struct Hold {
    begun: Notify,
    go: Notify,
}

impl Held {
    /// Until it is being executed.
    pub(crate) async fn begun(&self) {
        self.0.begun.notified().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.go.notify_one();
    }
}

impl Upstream {
    pub(crate) fn effects(&self) -> Effects {
        self.effects.lock().expect("no panic").clone()
    }

    /// And the value of [`HOLD`] that names it.
    pub(crate) fn hold(&self) -> (Held, String) {
        let hold = Arc::new(Hold::default());
        let mut holds = self.holds.lock().expect("no panic");
        let name = holds.len().to_string();
        holds.insert(name.clone(), Arc::clone(&hold));
        (Held(hold), name)
    }

    /// What Stripe and Square have, as far as a payment goes.
    pub(crate) fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/v1/payment_intents", post(payment_intent))
            .route("/v2/payments", post(payment))
            .with_state(Arc::clone(self))
    }

    /// Pays, and stays in it where it is told to.
    async fn pay(&self, operation: &str, headers: &HeaderMap) -> String {
        let payment = format!("pay_{}", self.payments.fetch_add(1, Relaxed));
        self.effects
            .lock()
            .expect("no panic")
            .entry(operation.to_owned())
            .or_default()
            .push(payment.clone());
        if let Some(name) = headers.get(HOLD) {
            let name = name.to_str().expect("a name");
            let hold = self.holds.lock().expect("no panic").get(name).cloned();
            let hold = hold.expect("a hold of this name");
            hold.begun.notify_one();
            hold.go.notified().await;
        }
        payment
    }
}

type Answer = (StatusCode, Json<Value>);

async fn payment_intent(
    State(upstream): State<Arc<Upstream>>,
    headers: HeaderMap,
    form: String,
) -> Answer {
    let field = |name: &str| {
        let fields = form.split('&').filter_map(|field| field.split_once('='));
        let mut found = fields.filter(|(found, _)| *found == name);
        found.next().map(|(_, value)| value.to_owned())
    };
    let (Some(operation), Some(amount)) = (field("metadata[operation]"), field("amount")) else {
        return (
            StatusCode::BAD_REQUEST,
            Json(json!({"error": {"message": form}})),
        );
    };
    let intent = json!({
        "id": upstream.pay(&operation, &headers).await,
        "object": "payment_intent",
        "amount": amount.parse::<u64>().ok(),
        "currency": field("currency"),
        "metadata": {"operation": operation},
        "status": "succeeded",
    });
    (StatusCode::OK, Json(intent))
}

async fn payment(
    State(upstream): State<Arc<Upstream>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answer {
    let Some(operation) = body["reference_id"].as_str() else {
        return (StatusCode::BAD_REQUEST, Json(json!({"errors": []})));
    };
    let payment = json!({"payment": {
        "id": upstream.pay(operation, &headers).await,
        "reference_id": operation,
        "amount_money": body["amount_money"],
        "status": "COMPLETED",
    }});
    (StatusCode::OK, Json(payment))
}

/// A server in this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    serving: AbortHandle,
}

impl Server {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = async move { axum::serve(listener, app).await.expect("it serves") };
        Self {
            address,
            serving: tokio::spawn(serving).abort_handle(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
