//! The code of the example that is generated, and what it is generated from.

use std::{fs, path::Path};

/// To write it anew: run this test, and copy what it says.
#[test]
fn the_generated_code_is_that_of_the_proto_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tonic");
    let described = protox::compile(["payments.proto"], [&folder]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .compile_fds(described)
        .unwrap();
    let generated = fs::read_to_string(out.path().join("payments.v1.rs")).unwrap();
    let committed = fs::read_to_string(folder.join("payments.v1.rs")).unwrap();
    if generated != committed {
        let kept = out.keep().join("payments.v1.rs");
        panic!(
            "examples/tonic/payments.v1.rs is not what its .proto file says, or what the generator \
             makes of it now: copy {} over it",
            kept.display()
        );
    }
}
