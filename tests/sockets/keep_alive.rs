//! What each refusal leaves of its connection: it goes on, or the refusal says that it ends.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use http::Request;
use tower_idempotency::{
    Fingerprinter, IdempotencyLayer, MemoryStore, Reason, Scope, Store, Takeover,
};

use crate::{
    down::Down,
    support::{
        Answer, Client, LAST_CHUNK, Payload, RAW, Raw, Server, Service, Stack, chunk, head, layer,
        pieces, post_to, request, until, whole,
    },
};

const KEY: &str = "idempotency-key: k";
const LIMIT: usize = 100;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// The next request on it is served.
    GoesOn,
    /// The answer says that it ends, and it ends.
    Closes,
}
use Then::{Closes, GoesOn};

/// A request that is refused.
struct Refused {
    reason: Reason,
    path: &'static str,
    lines: &'static str,
    /// What follows the head on HTTP/1.1: the bytes themselves.
    rest: Vec<u8>,
    then: Then,
}

/// A body of known length, so long.
fn known(reason: Reason, lines: &'static str, rest: usize) -> Refused {
    Refused {
        reason,
        path: "/pay",
        lines,
        rest: vec![b'x'; rest],
        then: GoesOn,
    }
}

/// A body in chunks of which these are the bytes.
fn chunked(reason: Reason, lines: &'static str, rest: &[u8]) -> Refused {
    Refused {
        rest: rest.to_vec(),
        ..known(reason, lines, 0)
    }
}

/// What is refused by its head or its body, whatever the store holds.
fn by_itself() -> Vec<Refused> {
    let (long, short) = (chunk(&[b'x'; 100 * 1024]), chunk(b"x"));
    let (long, short) = ([&long, LAST_CHUNK].concat(), [&short, LAST_CHUNK].concat());
    let too_long = chunk(&[b'x'; 2 * LIMIT]);
    let too_long = [&too_long, LAST_CHUNK].concat();
    let mut refused = Vec::new();
    for (reason, known_length, in_chunks) in [
        (
            Reason::KeyMissing,
            "x-caller: a\ncontent-length: 102400",
            "x-caller: a\ntransfer-encoding: chunked",
        ),
        (
            Reason::KeyInvalid,
            "idempotency-key: \"\nx-caller: a\ncontent-length: 102400",
            "idempotency-key: \"\nx-caller: a\ntransfer-encoding: chunked",
        ),
        (
            // Repeated.
            Reason::KeyInvalid,
            "idempotency-key: k\nidempotency-key: k\nx-caller: a\ncontent-length: 102400",
            "idempotency-key: k\nidempotency-key: k\nx-caller: a\ntransfer-encoding: chunked",
        ),
        (
            Reason::CallerUnknown,
            "idempotency-key: k\ncontent-length: 102400",
            "idempotency-key: k\ntransfer-encoding: chunked",
        ),
    ] {
        refused.push(known(reason, known_length, 102_400));
        refused.push(chunked(reason, in_chunks, &long));
        refused.push(chunked(reason, in_chunks, &short));
        refused.push(chunked(reason, in_chunks, LAST_CHUNK));
        // It stops in the middle.
        refused.push(Refused {
            then: Closes,
            ..known(reason, known_length, 1)
        });
        // Nobody knows yet whether it will come.
        let expecting: String = format!("expect: 100-continue\n{known_length}");
        refused.push(Refused {
            then: Closes,
            ..known(reason, expecting.leak(), 0)
        });
    }
    let keyed = "idempotency-key: k\nx-caller: a";
    let keyed = |line: &str| -> &'static str { format!("{keyed}\n{line}").leak() };
    refused.extend([
        known(Reason::BodyTooLarge, keyed("content-length: 101"), 101),
        chunked(
            Reason::BodyTooLarge,
            keyed("transfer-encoding: chunked"),
            &too_long,
        ),
        // More than is read for nothing.
        Refused {
            then: Closes,
            ..known(Reason::BodyTooLarge, keyed("content-length: 10000000"), 0)
        },
        Refused {
            then: Closes,
            ..known(
                Reason::BodyTooLarge,
                keyed("expect: 100-continue\ncontent-length: 101"),
                0,
            )
        },
        Refused {
            then: Closes,
            ..known(Reason::BodyTooSlow, keyed("content-length: 100"), 99)
        },
        Refused {
            then: Closes,
            ..chunked(
                Reason::BodyTooSlow,
                keyed("transfer-encoding: chunked"),
                b"5\r\nab",
            )
        },
        Refused {
            then: Closes,
            ..chunked(
                Reason::BodyBroken,
                keyed("transfer-encoding: chunked"),
                b"zz\r\n",
            )
        },
    ]);
    refused
}

/// The connection after `answer`.
async fn check(connection: &mut Raw, answer: &Answer, refused: &Refused, case: &str) {
    let status = match refused.reason {
        Reason::KeyMissing | Reason::KeyInvalid | Reason::BodyBroken => 400,
        Reason::CallerUnknown => 403,
        Reason::BodyTooSlow => 408,
        Reason::BodyTooLarge => 413,
        Reason::Mismatch => 422,
        Reason::StoreUnavailable | Reason::Overloaded => 503,
        _ => 409,
    };
    answer.assert_refused(status, refused.reason.as_str(), case);
    match refused.then {
        GoesOn => {
            assert_eq!(answer.header("connection"), None, "{case}");
            // Not covered, so it is served whatever the layer thinks.
            connection
                .try_send("GET /pay HTTP/1.1\r\nhost: x\r\n\r\n")
                .await;
            let next = connection.try_answer(false).await;
            let next = next.unwrap_or_else(|| panic!("{case}: the connection was closed"));
            assert!(next.text().ends_with("of none, 0 bytes"), "{case}");
        }
        Closes => {
            assert_eq!(answer.header("connection"), Some("close"), "{case}");
            connection.assert_closed(case).await;
        }
    }
}

fn by_caller<S: Store>(store: S) -> IdempotencyLayer<S> {
    IdempotencyLayer::new(store, Scope::header("x-caller"))
        .require_key(true)
        .body_limit(LIMIT)
        .body_timeout(Duration::from_secs(1))
}

/// I02, I08, S12, I12, U16, U17: what is refused by its head or body.
#[tokio::test]
async fn i02_i08_u16_u17_requests_that_are_refused_by_themselves() {
    let check_one = async |server: &Server, refused: Refused| {
        let rest = String::from_utf8_lossy(&refused.rest[..refused.rest.len().min(9)]);
        let (reason, lines) = (refused.reason, refused.lines);
        let case = format!("{:?} {reason}: {lines} {rest:?}", server.stack);
        let mut connection = server.connect().await;
        connection.send(head(refused.path, refused.lines)).await;
        connection.try_send(&refused.rest).await;
        let answer = connection.answer().await;
        check(&mut connection, &answer, &refused, &case).await;
    };
    for stack in RAW {
        let store = MemoryStore::new();
        let layer = by_caller(store.clone());
        let server = Server::with(stack, &layer, Service::new(), store.clone()).await;
        join_all(by_itself().into_iter().map(|one| check_one(&server, one))).await;
        assert_eq!(store.len(), 0);
    }
}

/// A layer's answer to a duplicate, or to a request that the store or a limit turns away.
async fn turned_away(stack: Stack, reason: Reason) -> Server {
    let (store, service) = (MemoryStore::new(), Service::new());
    let first = |layer: IdempotencyLayer<MemoryStore>| {
        let (service, store) = (service.clone(), store.clone());
        async move { Server::with(Stack::Http1, &layer, service, store).await }
    };
    let base = || layer(store.clone());
    let layer = match reason {
        Reason::InProgress => {
            let server = first(base()).await;
            ask_and_leave(&server).await;
            base()
        }
        Reason::Abandoned => {
            // With no place for it, what its client leaves is cut off.
            let lease = Duration::from_millis(10);
            let server = first(base().lease(lease).max_detached(0)).await;
            ask_and_leave(&server).await;
            tokio::time::sleep(10 * lease).await;
            base().takeover(Takeover::refuse())
        }
        Reason::Mismatch => {
            service.open(1);
            ask(&first(base()).await, b"another").await;
            base()
        }
        Reason::OtherAlgorithm => {
            service.open(1);
            let other = Fingerprinter::request().keyed("secret");
            ask(&first(base().fingerprint(other)).await, b"x").await;
            base()
        }
        Reason::NotReplayable => {
            service.open(1);
            ask(&first(base().response_limit(1)).await, b"x").await;
            base()
        }
        Reason::StoreUnavailable => {
            return Server::with(stack, &super::support::layer(Down), service, store).await;
        }
        _ => base().buffer_limit(0),
    };
    Server::with(stack, &layer, service, store).await
}

async fn ask(server: &Server, body: &[u8]) {
    let mut connection = server.connect().await;
    connection.send(post_to("/slow", KEY, body)).await;
    assert_eq!(connection.answer().await.status, 201);
}

async fn ask_and_leave(server: &Server) {
    let mut connection = server.connect().await;
    connection.send(post_to("/slow", KEY, b"x")).await;
    until("the handler", || server.service.started() == 1).await;
    connection.kill();
    until("the server to notice", || server.service.present() == 0).await;
}

const TURNED_AWAY: [Reason; 7] = [
    Reason::InProgress,
    Reason::Abandoned,
    Reason::Mismatch,
    Reason::OtherAlgorithm,
    Reason::NotReplayable,
    Reason::StoreUnavailable,
    Reason::Overloaded,
];

/// P5, P8, P9, I07, I09, U06, U37: what is refused by what the store says or a limit allows: its
/// body was read, or is, so the connection goes on.
#[tokio::test]
async fn p5_p8_p9_i07_i09_u06_u37_requests_that_are_turned_away() {
    for stack in RAW {
        for reason in TURNED_AWAY {
            let server = turned_away(stack, reason).await;
            let mut connection = server.connect().await;
            for in_chunks in [false, true] {
                let case = format!("{stack:?} {reason}, in chunks: {in_chunks}");
                let refused = known(reason, KEY, 1);
                match in_chunks {
                    false => connection.send(post_to("/slow", KEY, b"x")).await,
                    true => {
                        let head = head("/slow", &format!("{KEY}\ntransfer-encoding: chunked"));
                        let sent = [head.as_bytes(), &chunk(b"x"), LAST_CHUNK].concat();
                        connection.send(sent).await
                    }
                };
                let answer = connection.answer().await;
                check(&mut connection, &answer, &refused, &case).await;
            }
        }
    }
}

/// All of them over HTTP/2, where a refusal ends its stream and says nothing of the connection.
#[tokio::test]
async fn p5_p8_p9_i02_i08_refusals_over_http_2() {
    let get = || -> Request<Payload> {
        Request::get("http://localhost/pay")
            .body(whole(""))
            .unwrap()
    };
    let check = async |client: &mut Client, request: Request<Payload>, reason: Reason| {
        let answer = client.send(request).await;
        answer.assert_refused(answer.status, reason.as_str(), reason.as_str());
        assert_eq!(answer.header("connection"), None, "{reason}");
        let next = client.send(get()).await;
        assert!(next.text().ends_with("of none, 0 bytes"), "{reason}");
    };
    for reason in TURNED_AWAY {
        let server = turned_away(Stack::Http2, reason).await;
        let mut client = Client::connect(server.addr).await;
        for body in [whole("x"), pieces(["x".into()])] {
            check(&mut client, request("/slow", &[b"k"], body), reason).await;
        }
    }

    let store = Arc::new(MemoryStore::new());
    let layer = by_caller(Arc::clone(&store));
    let server = Server::with(Stack::Http2, &layer, Service::new(), MemoryStore::new()).await;
    let mut client = Client::connect(server.addr).await;
    for (reason, keys, caller, size) in [
        (Reason::KeyMissing, &[][..], "a", 100 * 1024),
        (Reason::KeyInvalid, &[&b"\""[..]], "a", 100 * 1024),
        (Reason::KeyInvalid, &[b"k", b"k"], "a", 100 * 1024),
        (Reason::CallerUnknown, &[b"k"], "", 100 * 1024),
        (Reason::BodyTooLarge, &[b"k"], "a", LIMIT + 1),
        (Reason::BodyTooLarge, &[b"k"], "a", 10 * 1024 * 1024),
    ] {
        let bodies = [
            whole(vec![b'x'; size]),
            pieces(vec![vec![b'x'; 1024].into(); size.div_ceil(1024)]),
        ];
        for body in bodies {
            let mut request = request("/pay", keys, body);
            let caller = caller.parse().unwrap();
            request.headers_mut().insert("x-caller", caller);
            check(&mut client, request, reason).await;
        }
    }
    assert_eq!(store.len(), 0);
}
