//! A payment that is made once, without any server.
//!
//! `cargo run --example function` plays some scenes and says what happens in each.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tower_idempotency::{Done, Execution, Function, MemoryStore, Operation, RunError};

#[derive(Serialize)]
struct Order {
    number: u32,
    cents: u64,
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    payment: u32,
    cents: u64,
}

#[derive(Debug)]
struct ConnectionLost;

impl fmt::Display for ConnectionLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection to the bank was lost")
    }
}

impl Error for ConnectionLost {}

/// What must not happen twice for one order. The bank counts its payments.
async fn pay(
    bank: Arc<AtomicU32>,
    order: Order,
    execution: Execution,
) -> Result<Receipt, ConnectionLost> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    if order.number == 13 && execution.attempt() == 1 {
        return Err(ConnectionLost);
    }
    Ok(Receipt {
        payment: bank.fetch_add(1, Ordering::SeqCst) + 1,
        cents: order.cents,
    })
}

#[tokio::main]
async fn main() {
    let bank = Arc::new(AtomicU32::new(0));
    let payments = Arc::clone(&bank);

    // The key is made from the order's number; the whole order is the input.
    let pay: Function<Order, Receipt, ConnectionLost> = Operation::new("pay", MemoryStore::new())
        .wrap(
            |order: &Order| format!("order:{}", order.number),
            move |order, execution| pay(Arc::clone(&bank), order, execution),
        );
    let call = |number, cents| pay.call(Order { number, cents });

    println!("The first call for order 7 pays:");
    tell(call(7, 500).await);

    println!("A duplicate gets the same receipt:");
    tell(call(7, 500).await);

    println!("Order 7 with another amount is a mistake, and is told so:");
    tell(call(7, 900).await);

    println!("Three at once for order 8, of which one pays:");
    let (one, two, three) = tokio::join!(call(8, 250), call(8, 250), call(8, 250));
    for result in [one, two, three] {
        tell(result);
    }

    println!("The caller of order 9 loses patience, and then asks again:");
    let impatient = tokio::time::timeout(Duration::from_millis(10), call(9, 100)).await;
    println!("  gave up: {}", impatient.is_err());
    // The payment went on without its caller. A process awaits this before it ends.
    pay.operation().drain().await;
    tell(call(9, 100).await);

    println!("For order 13 the connection breaks, and the next call pays:");
    tell(call(13, 700).await);
    tell(call(13, 700).await);

    let payments = payments.load(Ordering::SeqCst);
    println!("Four orders, ten calls, {payments} payments.");
    assert_eq!(payments, 4);
}

fn tell(result: Result<Done<Receipt>, RunError<ConnectionLost>>) {
    match result {
        Ok(done) => {
            let how = if done.is_replayed() {
                "replayed"
            } else {
                "paid"
            };
            let Receipt { payment, cents } = done.value();
            println!("  {how}: payment {payment} over {cents} cents");
        }
        Err(RunError::Work(error)) => println!("  failed: {error}"),
        Err(error) => println!("  refused: {error}"),
    }
}
