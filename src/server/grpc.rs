//! gRPC: which messages are, and how its callers are refused.
//!
//! A call is told by its `Content-Type`: `application/grpc`, alone or with a `+format`, and so is its
//! answer. gRPC-Web is not gRPC; a layer further out makes it so.
//!
//! A refusal is an answer of trailers only: the status 200, no body, and in the head what a
//! [`Status`] says.
//!
//! | reason | code |
//! |---|---|
//! | the key is missing or malformed | `INVALID_ARGUMENT` |
//! | the caller is unknown | `PERMISSION_DENIED` |
//! | in progress; the fingerprint was made by another algorithm | `ABORTED` |
//! | another payload; abandoned, and not taken over | `FAILED_PRECONDITION` |
//! | not replayable | `ALREADY_EXISTS` |
//! | the body is too large, too slow | `RESOURCE_EXHAUSTED`, `DEADLINE_EXCEEDED` |
//! | the body broke off | `CANCELLED`: whoever sent it gave up |
//! | the store cannot be asked, a limit is reached | `UNAVAILABLE` |
//! | not committed | `INTERNAL` |
//!
//! Its details are those of `google.rpc`: an `ErrorInfo`, whose reason is the name of the [`Reason`]
//! in capitals (`IN_PROGRESS`) and whose domain is `tower-idempotency`; where a retry can succeed a
//! `RetryInfo`; where the layer has a URL of documentation a `Help` with it. When to retry is said
//! twice more: by the metadata `retry-after`, in seconds, and by `grpc-retry-pushback-ms`, which the
//! retry policies of gRPC's own clients go by.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use tonic::{Code, Status, server::NamedService};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{problem::Refusal, service::Idempotency};
use crate::telemetry::Reason;

/// Who gives the reasons of `ErrorInfo` their meaning.
const DOMAIN: &str = "tower-idempotency";

const STATUS: &str = "grpc-status";

/// In milliseconds, how long a client that retries by a policy is to wait (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Whether these are the headers of a gRPC request or response.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    const MEDIA_TYPE: &[u8] = b"application/grpc";
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let content_type = content_type.as_bytes();
    match content_type.split_at_checked(MEDIA_TYPE.len()) {
        Some((media_type, rest)) => {
            media_type.eq_ignore_ascii_case(MEDIA_TYPE)
                && matches!(rest.trim_ascii_start().first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}

/// What a gRPC answer says of itself: in its trailers, or in its head if it has no other part.
///
/// `None` where it says nothing. What cannot be read is [`Code::Unknown`].
pub(super) fn code(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Option<Code> {
    let said = |headers: &HeaderMap| {
        let code = headers.get(STATUS)?;
        Some(Code::from_bytes(code.as_bytes()))
    };
    trailers.and_then(said).or_else(|| said(headers))
}

/// The answer of trailers only that tells of a refusal.
///
/// `docs_url` is an absolute URL.
pub(super) fn refused(refusal: &Refusal, docs_url: Option<&str>) -> Response<Bytes> {
    let reason = refusal.reason().as_str().replace('-', "_");
    let mut details = ErrorDetails::with_error_info(reason.to_uppercase(), DOMAIN, []);
    if let Some(after) = refusal.retry_after() {
        details.set_retry_info(Some(after));
    }
    if let Some(url) = docs_url {
        details.add_help_link("Idempotency keys", url);
    }
    let status = Status::with_error_details(code_of(refusal.reason()), refusal.detail(), details);
    let mut response = status.into_http();
    if let Some(after) = refusal.retry_after() {
        let seconds = after.as_secs();
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        let millis = seconds.saturating_mul(1000).min(i32::MAX as u64);
        headers.insert(PUSHBACK, HeaderValue::from(millis));
    }
    response
}

fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::KeyMissing | Reason::KeyInvalid => Code::InvalidArgument,
        Reason::CallerUnknown => Code::PermissionDenied,
        Reason::BodyTooLarge => Code::ResourceExhausted,
        Reason::BodyTooSlow => Code::DeadlineExceeded,
        Reason::BodyBroken => Code::Cancelled,
        Reason::InProgress | Reason::OtherAlgorithm => Code::Aborted,
        Reason::Mismatch | Reason::Abandoned => Code::FailedPrecondition,
        Reason::NotReplayable => Code::AlreadyExists,
        Reason::StoreUnavailable | Reason::Overloaded => Code::Unavailable,
        Reason::NotCommitted => Code::Internal,
    }
}

/// A gRPC service under the layer goes into a tonic server under its own name.
#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
impl<Svc: NamedService> NamedService for Idempotency<Svc> {
    const NAME: &'static str = Svc::NAME;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The table above, and what each says of a retry.
    #[test]
    fn i07_i08_i09_each_refusal_has_its_code() {
        let table = [
            (Reason::KeyMissing, Code::InvalidArgument, false),
            (Reason::KeyInvalid, Code::InvalidArgument, false),
            (Reason::CallerUnknown, Code::PermissionDenied, false),
            (Reason::BodyTooLarge, Code::ResourceExhausted, false),
            (Reason::BodyTooSlow, Code::DeadlineExceeded, false),
            (Reason::BodyBroken, Code::Cancelled, false),
            (Reason::InProgress, Code::Aborted, true),
            (Reason::Mismatch, Code::FailedPrecondition, false),
            (Reason::OtherAlgorithm, Code::Aborted, true),
            (Reason::NotReplayable, Code::AlreadyExists, false),
            (Reason::Abandoned, Code::FailedPrecondition, false),
            (Reason::StoreUnavailable, Code::Unavailable, true),
            (Reason::Overloaded, Code::Unavailable, true),
            (Reason::NotCommitted, Code::Internal, false),
        ];
        for (reason, code, retry) in table {
            let refusal = Refusal::new(reason, None, None, Duration::from_millis(1500));
            let response = refused(&refusal, Some("https://example.com/"));
            assert_eq!(response.status(), 200);
            assert!(response.body().is_empty());
            let headers = response.headers();
            assert!(is_grpc(headers));
            assert_eq!(super::code(headers, None), Some(code), "{reason}");
            let said = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
            assert_eq!(said("retry-after"), retry.then_some(&b"2"[..]), "{reason}");
            assert_eq!(said(PUSHBACK), retry.then_some(&b"2000"[..]), "{reason}");

            let status = Status::from_header_map(headers).expect("a status");
            assert_eq!(status.message(), refusal.detail());
            let details = status.get_error_details();
            let info = details.error_info().expect("an ErrorInfo");
            let name = reason.as_str().replace('-', "_").to_uppercase();
            assert_eq!((&info.reason[..], &info.domain[..]), (&name[..], DOMAIN));
            assert_eq!(details.retry_info().is_some(), retry, "{reason}");
            let help = details.help().expect("a Help");
            assert_eq!(help.links[0].url, "https://example.com/");
        }
    }

    #[test]
    fn the_longest_wait_can_be_told() {
        let refusal = Refusal::new(Reason::InProgress, None, None, Duration::MAX);
        let headers = refused(&refusal, None).into_parts().0.headers;
        assert_eq!(headers["retry-after"], u64::MAX.to_string());
        assert_eq!(headers[PUSHBACK], i32::MAX.to_string());
    }

    /// Trailers go before the head; what cannot be read is unknown, and silence is neither.
    #[test]
    fn a_status_is_found_wherever_it_stands() {
        let none = HeaderMap::new();
        let with = |code: &'static str| {
            HeaderMap::from_iter([(
                header::HeaderName::from_static(STATUS),
                HeaderValue::from_static(code),
            )])
        };
        assert_eq!(code(&none, None), None);
        assert_eq!(code(&none, Some(&none)), None);
        assert_eq!(code(&with("5"), None), Some(Code::NotFound));
        assert_eq!(code(&with("5"), Some(&none)), Some(Code::NotFound));
        assert_eq!(code(&with("5"), Some(&with("0"))), Some(Code::Ok));
        for unreadable in ["", "17", "-1", "0x0", "00", "ok"] {
            assert_eq!(code(&none, Some(&with(unreadable))), Some(Code::Unknown));
        }
    }
}
