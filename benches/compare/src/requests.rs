//! The operations that clients ask for, in memory and on the wire.

use std::io::Write as _;

use axum::{
    body::{Body, Bytes},
    http::{Request, header},
};

pub(crate) const KEY: &str = "idempotency-key";
pub(crate) const TENANT: &str = "x-tenant";
/// The name of the session's cookie.
pub(crate) const SESSION: &str = "session";
pub(crate) const PATH: &str = "/payments";

/// How many operations one caller has, and so one session.
const PER_CALLER: u64 = 8;

/// A payment of exactly 1 KiB of JSON.
pub(crate) fn payment(amount: u64) -> Bytes {
    let head = format!(r#"{{"amount":{amount},"currency":"EUR","reference":""#);
    let tail = "\"}";
    let reference = "x".repeat(1024 - head.len() - tail.len());
    Bytes::from(format!("{head}{reference}{tail}"))
}

/// One operation of one caller. All of them are equally long on the wire.
#[derive(Clone, Copy)]
pub(crate) struct Operation(pub(crate) u64);

impl Operation {
    fn key(self) -> String {
        // Spread, as random keys are, and shaped like a UUID.
        let high = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{:08x}-{:04x}-4000-8000-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            self.0
        )
    }

    fn tenant(self) -> String {
        format!("tenant-{:012}", self.0 / PER_CALLER)
    }

    /// A session's cookie: 128 bits in base64url. The caller logged in earlier.
    fn cookie(self) -> String {
        format!("{SESSION}={:021}A", self.0 / PER_CALLER)
    }

    /// All candidates get the same headers, and each looks at its own.
    pub(crate) fn request(self, path: &str, body: &Bytes) -> Request<Body> {
        Request::post(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len())
            .header(header::COOKIE, self.cookie())
            .header(TENANT, self.tenant())
            .header(KEY, self.key())
            .body(Body::from(body.clone()))
            .expect("the parts are valid")
    }

    /// The same for HTTP/1.1, in place of what `buffer` held.
    pub(crate) fn write(self, buffer: &mut Vec<u8>, body: &[u8]) {
        let (cookie, tenant, key) = (self.cookie(), self.tenant(), self.key());
        let length = body.len();
        buffer.clear();
        write!(
            buffer,
            "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\ncookie: {cookie}\r\n{TENANT}: {tenant}\r\n\
             {KEY}: {key}\r\n\r\n"
        )
        .expect("a vector takes what is written");
        buffer.extend_from_slice(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_a_kibibyte_of_json() {
        for amount in [1, 5_000] {
            let payment = payment(amount);
            assert_eq!(payment.len(), 1024);
            let value: serde_json::Value = serde_json::from_slice(&payment).unwrap();
            assert_eq!(value["amount"], amount);
        }
    }

    #[test]
    fn operations_differ_in_their_keys_and_not_in_length() {
        let write = |n| {
            let mut buffer = Vec::new();
            Operation(n).write(&mut buffer, b"{}");
            String::from_utf8(buffer).unwrap()
        };
        assert_ne!(write(0), write(1));
        assert_eq!(write(0).len(), write(1_000_000).len());
    }
}
