//! `--demo`: a request, its duplicate, another key, and three at once, over real connections.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    client::{self, Answer},
    say,
};

/// Plays the transcript against the server at `addr`; the error tells what went otherwise.
pub(crate) async fn play(addr: SocketAddr) -> Result<(), String> {
    let mut demo = Demo::new(addr);
    match demo.transcript().await {
        Ok(()) if demo.faults.is_empty() => {
            say("Everything went as it should.");
            Ok(())
        }
        Ok(()) => Err(format!("it went otherwise: {}", demo.faults.join("; "))),
        Err(error) => Err(format!("the demo broke off: {error}")),
    }
}

struct Demo {
    addr: SocketAddr,
    run: u128,
    faults: Vec<String>,
}

impl Demo {
    fn new(addr: SocketAddr) -> Self {
        // Keys of its own for every run: a store may remember the last one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            addr,
            run: now.unwrap_or_default().as_nanos(),
            faults: Vec::new(),
        }
    }

    async fn transcript(&mut self) -> std::io::Result<()> {
        let order = r#"{"amount": 100, "currency": "EUR", "reference": "order-1"}"#;
        let other = r#"{"amount": 250, "currency": "EUR", "reference": "order-2"}"#;
        // Long enough that the three requests of the race meet on any machine.
        let slow = r#"{"amount": 40, "currency": "EUR", "reference": "order-3", "simulate": {"delay_ms": 2000}}"#;

        say("== A request, and its duplicate\n");
        let first = self.pay("order-1", order).await?;
        self.expect("the request is executed", is_fresh(&first));
        let duplicate = self.pay("order-1", order).await?;
        self.expect(
            "its duplicate gets the same answer, marked as a replay",
            is_replay_of(&duplicate, &first),
        );

        say("== Another key is another operation\n");
        let second = self.pay("order-2", other).await?;
        self.expect(
            "the other key is executed",
            is_fresh(&second) && second.body != first.body,
        );

        say("== Three at once with one key\n");
        // Connected first, so that the requests leave together.
        let (a, b, c) = tokio::try_join!(self.connect(), self.connect(), self.connect())?;
        let key = self.key("order-3");
        let race = tokio::try_join!(
            post(a, &key, slow),
            post(b, &key, slow),
            post(c, &key, slow)
        )?;
        let race = [race.0, race.1, race.2];
        for answer in &race {
            print(&key, slow, answer);
        }
        let winners: Vec<_> = race.iter().filter(|answer| is_fresh(answer)).collect();
        let refused = |answer: &&Answer| {
            let seconds = answer.header("retry-after").map(str::parse::<u64>);
            answer.status == 409 && matches!(seconds, Some(Ok(1..)))
        };
        self.expect(
            "one of three is executed, two are refused with 409 and Retry-After",
            winners.len() == 1 && race.iter().filter(refused).count() == 2,
        );

        say("== A refused one tries again\n");
        let retry = self.pay("order-3", slow).await?;
        self.expect(
            "its retry gets the answer of the one that was executed",
            winners.iter().all(|winner| is_replay_of(&retry, winner)),
        );

        say("== What was executed\n");
        let ledger = client::send(self.addr, "GET", "/ledger", &[], "").await?;
        let executed: Vec<_> = match serde_json::from_str(&ledger.body) {
            Ok(Value::Array(entries)) => entries,
            _ => Vec::new(),
        };
        let executed: Vec<_> = executed
            .iter()
            .filter_map(|entry| entry["key"].as_str())
            .filter(|key| key.ends_with(&self.run.to_string()))
            .collect();
        for key in &executed {
            say(format_args!("   {key}"));
        }
        say("");
        let keys = ["order-1", "order-2", "order-3"].map(|name| self.key(name));
        self.expect("three effects for seven requests", executed == keys);
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.addr).await
    }

    async fn pay(&self, name: &str, body: &str) -> std::io::Result<Answer> {
        let key = self.key(name);
        let answer = post(self.connect().await?, &key, body).await?;
        print(&key, body, &answer);
        Ok(answer)
    }

    fn expect(&mut self, what: &str, holds: bool) {
        say(format_args!(
            "   {} {what}\n",
            if holds { "ok:" } else { "WRONG:" }
        ));
        if !holds {
            self.faults.push(format!("not so: {what}"));
        }
    }
}

async fn post(connection: TcpStream, key: &str, body: &str) -> std::io::Result<Answer> {
    let quoted = format!("\"{key}\"");
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", quoted.as_str()),
    ];
    client::send_on(connection, "POST", "/payments", &headers, body).await
}

fn is_fresh(answer: &Answer) -> bool {
    answer.status == 201
        && !answer.is_replay()
        && answer.json("/status") == Some("succeeded".into())
}

fn is_replay_of(answer: &Answer, first: &Answer) -> bool {
    answer.is_replay()
        && answer.status == first.status
        && answer.body == first.body
        && answer.header("location") == first.header("location")
}

fn print(key: &str, body: &str, answer: &Answer) {
    say(format_args!("-> POST /payments"));
    say(format_args!("   Idempotency-Key: \"{key}\""));
    say(format_args!("   {body}"));
    say(format_args!("<- {}", answer.status));
    for name in ["Location", "Retry-After", "Idempotent-Replayed"] {
        if let Some(value) = answer.header(&name.to_ascii_lowercase()) {
            say(format_args!("   {name}: {value}"));
        }
    }
    say(format_args!("   {}\n", answer.body));
}
