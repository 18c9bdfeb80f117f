//! An answer as the bytes of a record, and back.
//!
//! ```text
//! 1        version
//! 1        flags: 1 the length is exact, 2 there are trailers
//! 4        length of the body
//! 2        number of header lines, then each of them:
//! 2        length of the name
//! 4        length of the value, and in the highest bit whether it is sensitive
//! …        name, value
//! 2 …      likewise the trailers, if there are any
//! …        the body
//! ```
//!
//! Numbers are big-endian; the status is the [`Payload`]'s code. Encoding fills one buffer of
//! exactly the right size, so a record holds no other buffer alive (U10); decoding slices it.
//!
//! Not recorded, since they belong to the connection or the moment and not to the answer:
//!
//! - `Connection`, what it names, `Keep-Alive`, `Proxy-Connection`, `TE`, `Transfer-Encoding` and
//!   `Upgrade` (RFC 9110, 7.6.1), and `Proxy-Authenticate` and `Proxy-Authentication-Info`, which
//!   RFC 9111 (3.1) bars from being stored. `Trailer` is recorded: it describes the answer, and
//!   HTTP/1.1 sends only trailers that it announces.
//! - `Date`, which the server sets anew.
//! - `Set-Cookie`, unless asked for: a retry may come when the session has moved on.

use std::{error::Error, fmt};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, DATE, PROXY_AUTHENTICATE, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE},
    response,
};

use crate::record::Payload;

const VERSION: u8 = 1;
const EXACT: u8 = 1;
const TRAILERS: u8 = 2;
const SENSITIVE: u32 = 1 << 31;

/// A recorded answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<Box<HeaderMap>>,
    /// Whether the original stated its length, see
    /// [`ResponseBody::buffered`](super::ResponseBody).
    pub(crate) exact: bool,
}

/// Records an answer.
///
/// `None` where it cannot be replayed: a 1xx, which is no final answer (101 hands the connection
/// over), or a part too long for its length field.
pub(crate) fn encode(
    parts: &response::Parts,
    frames: &[Bytes],
    trailers: Option<&HeaderMap>,
    exact: bool,
    set_cookie: bool,
) -> Option<Payload> {
    if parts.status.is_informational() {
        return None;
    }
    let kept = |name: &HeaderName| is_kept(name, &parts.headers, set_cookie);
    let body_len = frames.iter().map(Bytes::len).sum::<usize>();
    let size = 6
        + lines_len(&parts.headers, kept)
        + trailers.map_or(0, |trailers| lines_len(trailers, |_| true))
        + body_len;

    let mut bytes = Vec::with_capacity(size);
    bytes.push(VERSION);
    bytes.push(u8::from(exact) * EXACT + u8::from(trailers.is_some()) * TRAILERS);
    bytes.extend(u32::try_from(body_len).ok()?.to_be_bytes());
    push_lines(&mut bytes, &parts.headers, kept)?;
    if let Some(trailers) = trailers {
        push_lines(&mut bytes, trailers, |_| true)?;
    }
    for frame in frames {
        bytes.extend_from_slice(frame);
    }
    debug_assert_eq!(bytes.len(), size);
    Some(Payload::new(parts.status.as_u16(), bytes.into()))
}

fn lines_len(headers: &HeaderMap, kept: impl Fn(&HeaderName) -> bool) -> usize {
    let line = |(name, value): (&HeaderName, &HeaderValue)| match kept(name) {
        true => 6 + name.as_str().len() + value.len(),
        false => 0,
    };
    2 + headers.iter().map(line).sum::<usize>()
}

fn push_lines(
    bytes: &mut Vec<u8>,
    headers: &HeaderMap,
    kept: impl Fn(&HeaderName) -> bool,
) -> Option<()> {
    let count_at = bytes.len();
    let mut count = 0_u16;
    bytes.extend(count.to_be_bytes());
    for (name, value) in headers {
        if !kept(name) {
            continue;
        }
        count = count.checked_add(1)?;
        let name = name.as_str();
        bytes.extend(u16::try_from(name.len()).ok()?.to_be_bytes());
        let len = u32::try_from(value.len())
            .ok()
            .filter(|len| len & SENSITIVE == 0)?;
        let mark = u32::from(value.is_sensitive()) * SENSITIVE;
        bytes.extend((len | mark).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
    Some(())
}

fn is_kept(name: &HeaderName, headers: &HeaderMap, set_cookie: bool) -> bool {
    match name {
        &CONNECTION | &DATE | &PROXY_AUTHENTICATE | &TE | &TRANSFER_ENCODING | &UPGRADE => false,
        &SET_COOKIE if !set_cookie => false,
        _ if matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "proxy-authentication-info"
        ) =>
        {
            false
        }
        _ => !headers.get_all(CONNECTION).iter().any(|options| {
            options
                .as_bytes()
                .split(|&b| b == b',')
                .any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_ref()))
        }),
    }
}

/// The bytes of a record are not those of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CorruptAnswer {
    /// Another version of this crate wrote it.
    Version(u8),
    /// It is cut off, or was changed. Says where.
    Malformed(&'static str),
}

impl fmt::Display for CorruptAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "the recorded answer has format version {version}, and this is version {VERSION}"
            ),
            Self::Malformed(part) => write!(f, "the recorded answer is malformed: {part}"),
        }
    }
}

impl Error for CorruptAnswer {}

/// Reads a recorded answer. Header values and body share the record's memory.
///
/// # Errors
///
/// [`CorruptAnswer`] for anything that [`encode`] did not write (U18).
pub(crate) fn decode(payload: &Payload) -> Result<Answer, CorruptAnswer> {
    let status = StatusCode::from_u16(payload.code)
        .ok()
        .filter(|status| !status.is_informational())
        .ok_or(CorruptAnswer::Malformed("the status"))?;
    let mut rest = payload.bytes.clone();
    match u8::from_be_bytes(take(&mut rest)?) {
        VERSION => {}
        version => return Err(CorruptAnswer::Version(version)),
    }
    let flags = u8::from_be_bytes(take(&mut rest)?);
    if flags & !(EXACT | TRAILERS) != 0 {
        return Err(CorruptAnswer::Malformed("the flags"));
    }
    let body_len = u32::from_be_bytes(take(&mut rest)?) as usize;
    let headers = lines(&mut rest)?;
    let trailers = match flags & TRAILERS {
        0 => None,
        _ => Some(Box::new(lines(&mut rest)?)),
    };
    if rest.len() != body_len {
        return Err(CorruptAnswer::Malformed("the length of the body"));
    }
    Ok(Answer {
        status,
        headers,
        body: rest,
        trailers,
        exact: flags & EXACT != 0,
    })
}

/// `Idempotent-Replayed`, and what layers further out and the server usually add.
const ADDED: usize = 4;

const CUT_OFF: CorruptAnswer = CorruptAnswer::Malformed("it is cut off");

fn lines(rest: &mut Bytes) -> Result<HeaderMap, CorruptAnswer> {
    let count = usize::from(u16::from_be_bytes(take(rest)?));
    // A wrong count reserves no more than this; a true one beyond it grows the map. There is room
    // for the lines that are added on the way out, or else the first of them would move all.
    let mut headers = HeaderMap::with_capacity(count.min(64) + ADDED);
    for _ in 0..count {
        let name_len = usize::from(u16::from_be_bytes(take(rest)?));
        let value_len = u32::from_be_bytes(take(rest)?);
        let name = slice(rest, name_len)?;
        let name = HeaderName::from_bytes(&name)
            .map_err(|_| CorruptAnswer::Malformed("the name of a header"))?;
        let value = slice(rest, (value_len & !SENSITIVE) as usize)?;
        let mut value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| CorruptAnswer::Malformed("the value of a header"))?;
        value.set_sensitive(value_len & SENSITIVE != 0);
        headers
            .try_append(name, value)
            .map_err(|_| CorruptAnswer::Malformed("the number of header lines"))?;
    }
    Ok(headers)
}

fn take<const N: usize>(rest: &mut Bytes) -> Result<[u8; N], CorruptAnswer> {
    let taken = *rest.first_chunk().ok_or(CUT_OFF)?;
    bytes::Buf::advance(rest, N);
    Ok(taken)
}

fn slice(rest: &mut Bytes, len: usize) -> Result<Bytes, CorruptAnswer> {
    match len <= rest.len() {
        true => Ok(rest.split_to(len)),
        false => Err(CUT_OFF),
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use proptest::prelude::*;

    use super::*;

    fn parts(status: u16, headers: &[(&'static str, &[u8])]) -> response::Parts {
        let mut parts = Response::new(()).into_parts().0;
        parts.status = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value).unwrap();
            parts.headers.append(*name, value);
        }
        parts
    }

    fn shown(headers: &HeaderMap) -> Vec<(String, Vec<u8>, bool)> {
        headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    value.as_bytes().to_vec(),
                    value.is_sensitive(),
                )
            })
            .collect()
    }

    fn round_trip(parts: &response::Parts, set_cookie: bool) -> Answer {
        decode(&encode(parts, &[], None, true, set_cookie).unwrap()).unwrap()
    }

    /// U22, U27: status, duplicates in order, bytes that are not UTF-8, and sensitivity survive.
    #[test]
    fn u22_u27_an_answer_survives() {
        let mut parts = parts(
            201,
            &[
                ("location", b"/payments/1"),
                ("x-a", b"1"),
                ("x-b", b"\xff\xfe"),
                ("x-a", b"2"),
                ("x-a", b"1"),
                ("content-length", b"5"),
                ("trailer", b"x-sum"),
                ("x-empty", b""),
                ("cache-control", b"no-store"),
            ],
        );
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        parts.headers.insert("x-secret", secret);
        let trailers = parts.headers.clone();
        let frames = [Bytes::from_static(b"ab"), Bytes::from_static(b"cde")];
        for (trailers, exact) in [(None, true), (Some(&trailers), false)] {
            let payload = encode(&parts, &frames, trailers, exact, false).unwrap();
            assert_eq!(payload.code, 201);
            let answer = decode(&payload).unwrap();
            assert_eq!(answer.status, 201);
            assert_eq!(shown(&answer.headers), shown(&parts.headers));
            assert_eq!(answer.body, "abcde");
            assert_eq!(answer.trailers.as_deref().map(shown), trailers.map(shown));
            assert_eq!(answer.exact, exact);
        }
    }

    /// U10: a record is one buffer of its own, and decoding copies neither values nor body.
    #[test]
    fn u10_decoding_shares_the_record_and_the_record_shares_nothing() {
        let parts = parts(200, &[("x-a", b"value")]);
        let frame = Bytes::from(vec![7; 100]);
        let payload = encode(&parts, std::slice::from_ref(&frame), None, true, false).unwrap();
        assert!(payload.bytes.is_unique());
        let range = payload.bytes.as_ptr_range();
        let answer = decode(&payload).unwrap();
        assert!(range.contains(&answer.body.as_ptr()));
        assert!(range.contains(&answer.headers["x-a"].as_bytes().as_ptr()));
        assert!(!range.contains(&frame.as_ptr()));
    }

    #[test]
    fn headers_of_the_connection_and_the_moment_are_not_recorded() {
        let parts = parts(
            200,
            &[
                ("connection", b"close, X-Hop"),
                ("connection", b" x-other ,,"),
                ("x-hop", b"1"),
                ("x-other", b"1"),
                ("keep-alive", b"timeout=5"),
                ("proxy-connection", b"close"),
                ("proxy-authenticate", b"Basic"),
                ("proxy-authentication-info", b"x"),
                ("te", b"trailers"),
                ("transfer-encoding", b"chunked"),
                ("upgrade", b"h2c"),
                ("date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
                ("set-cookie", b"a=1"),
                ("set-cookie", b"b=2"),
                ("x-stays", b"1"),
            ],
        );
        let names = |set_cookie| -> Vec<_> {
            let answer = round_trip(&parts, set_cookie);
            shown(&answer.headers)
                .into_iter()
                .map(|(name, ..)| name)
                .collect()
        };
        assert_eq!(names(false), ["x-stays"]);
        assert_eq!(names(true), ["set-cookie", "set-cookie", "x-stays"]);
    }

    #[test]
    fn a_response_that_is_no_final_answer_is_not_replayable() {
        assert!(encode(&parts(101, &[]), &[], None, true, false).is_none());
    }

    /// All that a header map can hold: so many names, and so many further values.
    #[test]
    fn the_fullest_header_map_survives() {
        let mut full = parts(200, &[]);
        let value = HeaderValue::from_static("");
        for n in 0.. {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            if full.headers.try_insert(name, value.clone()).is_err() {
                break;
            }
        }
        while full.headers.try_append("x-0", value.clone()).is_ok() {}
        let answer = round_trip(&full, false);
        assert_eq!(shown(&answer.headers), shown(&full.headers));
    }

    /// U18: a record that is cut off anywhere, or longer than it says, is an error.
    #[test]
    fn u18_a_truncated_record_is_an_error() {
        let parts = parts(200, &[("x-a", b"1"), ("content-type", b"text/plain")]);
        let frames = [Bytes::from_static(b"hello")];
        let whole = encode(&parts, &frames, Some(&parts.headers), false, false).unwrap();
        for len in 1..whole.bytes.len() {
            let cut = Payload::new(200, whole.bytes.slice(..len));
            assert!(decode(&cut).is_err(), "{len} bytes");
        }
        assert!(decode(&Payload::not_replayable(200)).is_err());
        let longer = [&whole.bytes[..], b"!"].concat();
        assert!(decode(&Payload::new(200, longer.into())).is_err());
    }

    /// U18: a record of an unknown version says so.
    #[test]
    fn u18_an_unknown_version_is_named() {
        let error = decode(&Payload::new(200, Bytes::from_static(b"\x02rest"))).err();
        assert_eq!(error, Some(CorruptAnswer::Version(2)));
        assert_eq!(
            CorruptAnswer::Version(2).to_string(),
            "the recorded answer has format version 2, and this is version 1"
        );
    }

    #[test]
    fn u18_an_impossible_status_is_an_error() {
        for code in [0, 99, 101, 1000, u16::MAX] {
            let bytes = encode(&parts(200, &[]), &[], None, true, false)
                .unwrap()
                .bytes;
            assert!(decode(&Payload::new(code, bytes)).is_err(), "{code}");
        }
    }

    /// The first format, byte by byte: records outlive the process that wrote them.
    #[test]
    fn version_1_is_fixed() {
        let mut parts = parts(201, &[("x-a", b"1")]);
        parts.headers.get_mut("x-a").unwrap().set_sensitive(true);
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("t"), HeaderValue::from_static("23"))]);
        let body = [Bytes::from_static(b"hi")];
        let payload = encode(&parts, &body, Some(&trailers), false, false).unwrap();
        assert_eq!(
            payload.bytes,
            &b"\x01\x02\0\0\0\x02\0\x01\0\x03\x80\0\0\x01x-a1\0\x01\0\x01\0\0\0\x02t23hi"[..]
        );
    }

    proptest! {
        /// U18: no bytes make decoding panic.
        #[test]
        fn u18_any_bytes_decode_or_fail(
            code in any::<u16>(),
            mut bytes in prop::collection::vec(any::<u8>(), 1..200),
            version in any::<bool>(),
        ) {
            if version {
                bytes[0] = VERSION;
            }
            let _ = decode(&Payload::new(code, bytes.into()));
        }

        /// U18: nor does a changed byte in a good record; and what still decodes is of the same
        /// size, so a wrong length never reaches beyond the record.
        #[test]
        fn u18_a_changed_byte_decodes_or_fails(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let parts = parts(200, &[("x-a", b"1"), ("content-type", b"text/plain")]);
            let body = [Bytes::from_static(b"hello")];
            let whole = encode(&parts, &body, Some(&parts.headers), true, false).unwrap();
            let mut bytes = whole.bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(answer) = decode(&Payload::new(200, bytes.into())) {
                prop_assert!(answer.body.len() <= whole.bytes.len());
            }
        }

        #[test]
        fn any_answer_survives(
            status in 200_u16..1000,
            lines in prop::collection::vec(
                ("[a-z]{1,8}", prop::collection::vec(0x20_u8..0x7f, 0..20), any::<bool>()),
                0..20,
            ),
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..4),
            trailing in any::<bool>(),
            exact in any::<bool>(),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value, sensitive) in lines {
                let mut value = HeaderValue::from_bytes(&value).unwrap();
                value.set_sensitive(sensitive);
                // `x-`: none that is left out.
                headers.append(HeaderName::try_from(format!("x-{name}")).unwrap(), value);
            }
            let mut parts = parts(status, &[]);
            parts.headers = headers.clone();
            let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let trailers = trailing.then_some(&headers);
            let payload = encode(&parts, &frames, trailers, exact, false).unwrap();
            let answer = decode(&payload).unwrap();
            prop_assert_eq!(answer.status.as_u16(), status);
            prop_assert_eq!(shown(&answer.headers), shown(&headers));
            prop_assert_eq!(answer.trailers.as_deref().map(shown), trailers.map(shown));
            prop_assert_eq!(answer.body, frames.concat());
            prop_assert_eq!(answer.exact, exact);
        }
    }
}
