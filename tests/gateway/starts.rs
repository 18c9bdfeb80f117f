//! What keeps the gateway from starting: said in one line, with exit code 1. What is wrong with its
//! options is in `tests/gateway_config`.

use std::net::{SocketAddr, TcpListener};

use crate::servers::{
    example::{example, run},
    process::free_address,
};

fn refused(listen: SocketAddr, upstream: &str, store: &str) -> String {
    let ended = run(example("gateway")
        .args(["--single-tenant", "--listen", &listen.to_string()])
        .args(["--upstream", upstream, "--store", store]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.is_empty());
    let said = ended.stderr;
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

#[test]
fn an_address_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|addr| (addr, taken));
    let (addr, _listener) = taken.unwrap();
    let said = refused(addr, "http://127.0.0.1:1", "memory");
    assert!(
        said.starts_with(&format!("error: cannot listen on {addr}: ")),
        "{said}"
    );
}

/// U19: and no password is shown.
#[test]
fn u19_a_store_that_cannot_be_opened() {
    let any = "127.0.0.1:0".parse().unwrap();
    let nowhere = "sqlite:/nowhere/records.db";
    let said = refused(any, "http://127.0.0.1:1", nowhere);
    assert!(
        said.starts_with("error: the store `sqlite` cannot be opened: "),
        "{said}"
    );
    if !cfg!(feature = "redis") {
        return;
    }
    let redis = format!("redis://:secret@{}", free_address());
    let said = refused(any, "http://127.0.0.1:1", &redis);
    assert!(
        said.starts_with("error: the store `redis` cannot be opened: "),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
}
