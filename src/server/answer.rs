//! What a handler's answer makes of its operation: what is recorded, and what is sent.

use std::future::Future;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, TRANSFER_ENCODING},
    response,
};
use http_body::Body;

use super::{
    body::{self, Collected, ResponseBody},
    codec,
    config::{Config, Form},
    verdict::Verdict,
};
use crate::{engine::Ending, record::Payload};

/// Judges the handler's answer, and makes ready what is recorded and what is sent.
#[expect(clippy::manual_async_fn, reason = "smaller: see `Covered`")]
pub(super) fn answered<B, E>(
    config: &Config,
    head: bool,
    parts: response::Parts,
    body: B,
) -> impl Future<Output = (Ending, Result<Response<ResponseBody<B>>, E>)>
where
    B: Body<Data = Bytes>,
    B::Error: Send + 'static,
{
    async move {
        if is_stream(&parts) {
            let ending = not_replayable(config, &parts);
            let body = ResponseBody::untouched(body);
            return (ending, Ok(Response::from_parts(parts, body)));
        }
        let exact = is_exact(head, &parts, &body);
        let (limit, timeout) = (config.response_limit, config.response_timeout);
        let collected = body::collect(body, limit, timeout, config.engine.work().bytes());
        let (ending, body) = match collected.await {
            Collected::Whole {
                frames,
                trailers,
                permit,
            } => {
                let ending = match (config.judge)(&parts, trailers.as_deref()) {
                    Verdict::Completed => {
                        let (trailers, cookies) = (trailers.as_deref(), config.replay_set_cookie);
                        let encoded = codec::encode(&parts, &frames, trailers, exact, cookies);
                        Ending::Completed(encoded.unwrap_or_else(|| bare(&parts)))
                    }
                    // What was sent before the status says that something was done.
                    Verdict::Rejected if is_grpc(&parts) && !frames.is_empty() => Ending::Failed,
                    Verdict::Rejected => Ending::Rejected,
                    Verdict::Failed => Ending::Failed,
                };
                let body = ResponseBody::buffered(frames, trailers, exact, Some(permit));
                (ending, body)
            }
            Collected::Partial {
                frames,
                rest,
                permit,
            } => (
                not_replayable(config, &parts),
                ResponseBody::passed_on(frames, rest, permit),
            ),
            Collected::Broken {
                frames,
                error,
                permit,
            } => (Ending::Failed, ResponseBody::broken(frames, error, permit)),
        };
        (ending, Ok(Response::from_parts(parts, body)))
    }
}

/// The probe's answer, to be recorded and sent as if the handler had given it.
pub(super) fn probed<B, E>(
    config: &Config,
    response: Response<Bytes>,
) -> (Ending, Result<Response<ResponseBody<B>>, E>) {
    let (mut parts, body) = response.into_parts();
    let trailers = parts.extensions.remove::<HeaderMap>().map(Box::new);
    let frames = [body];
    let cookies = config.replay_set_cookie;
    let encoded = codec::encode(&parts, &frames, trailers.as_deref(), true, cookies);
    let ending = Ending::Completed(encoded.unwrap_or_else(|| bare(&parts)));
    let [body] = frames;
    let response = Response::from_parts(parts, ResponseBody::buffered(body, trailers, true, None));
    (ending, Ok(response))
}

fn not_replayable(config: &Config, parts: &response::Parts) -> Ending {
    if is_grpc(parts) && !parts.headers.contains_key("grpc-status") {
        // It comes last, and nobody waits for it: there is nothing to judge by.
        return Ending::Completed(bare(parts));
    }
    match (config.judge)(parts, None) {
        Verdict::Completed => Ending::Completed(bare(parts)),
        Verdict::Rejected => Ending::Rejected,
        Verdict::Failed => Ending::Failed,
    }
}

fn is_grpc(parts: &response::Parts) -> bool {
    Form::of(&parts.headers).is_grpc()
}

fn bare(parts: &response::Parts) -> Payload {
    Payload::not_replayable(parts.status.as_u16())
}

/// Whether a replay states its length.
///
/// An answer that has no body by its nature may have a length all the same, or may not: a replay is
/// to have one only if the first answer had (U22). One that says how it is transferred (a proxy's,
/// copied from the server behind it) must not have a length beside that: servers refuse to send
/// both.
pub(super) fn is_exact(head: bool, parts: &response::Parts, body: &impl Body) -> bool {
    let framed = parts.headers.contains_key(TRANSFER_ENCODING);
    let bodiless = head
        || matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    !(bodiless || framed) || body.size_hint().exact().is_some()
}

/// An answer that has no end to wait for: server-sent events, or an upgrade.
pub(super) fn is_stream(parts: &response::Parts) -> bool {
    let events = |value: &HeaderValue| {
        let media_type = value.as_bytes().split(|&b| b == b';').next();
        media_type
            .unwrap_or_default()
            .trim_ascii()
            .eq_ignore_ascii_case(b"text/event-stream")
    };
    parts.status == StatusCode::SWITCHING_PROTOCOLS
        || parts.headers.get(CONTENT_TYPE).is_some_and(events)
}
