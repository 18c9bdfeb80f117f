//! What a client has to read of a gRPC answer. It needs no gRPC library, and no feature.

use http::{HeaderMap, Response, StatusCode, header};

/// Trailers of a gRPC answer that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Trailers(pub(crate) HeaderMap);

/// Whether these are the headers of a gRPC message: its type, alone, with a `+`, or with parameters.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(|kind| kind.as_bytes());
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

const STATUS: &str = "grpc-status";

pub(crate) fn has_status(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> bool {
    headers.contains_key(STATUS) || trailers.is_some_and(|trailers| trailers.contains_key(STATUS))
}

/// The status code of a gRPC answer, and the map that it stands in: the head where the answer has no
/// message, else the trailers. `None` for everything else, and where the trailers are not read yet.
pub(crate) fn status<R>(response: &Response<R>) -> Option<(&[u8], &HeaderMap)> {
    if response.status() != StatusCode::OK || !is_grpc(response.headers()) {
        return None;
    }
    let trailers = response.extensions().get().map(|Trailers(map)| map);
    let mut maps = [Some(response.headers()), trailers].into_iter().flatten();
    maps.find_map(|map| Some((map.get(STATUS)?.as_bytes(), map)))
}
