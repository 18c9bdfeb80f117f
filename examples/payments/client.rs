//! The least HTTP client that will do: one request, one connection.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header, whose name is given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether the layer says that this answer was given before.
    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// A member of the JSON body.
    pub(crate) fn json(&self, pointer: &str) -> Option<serde_json::Value> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        body.pointer(pointer).cloned()
    }
}

/// Sends a request on a connection of its own.
pub(crate) async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    send_on(TcpStream::connect(addr).await?, method, path, headers, body).await
}

/// Sends a request on a connection that is open already, and reads its answer.
pub(crate) async fn send_on(
    mut connection: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
        connection.peer_addr()?
    );
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    connection.write_all(request.as_bytes()).await?;

    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("not an HTTP answer: {answer:?}")))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Option<Vec<_>> = lines
        .map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let answer = Answer {
        status,
        headers: headers?,
        body: body.to_owned(),
    };
    // The service sends bodies of a known length only; one that broke off is no answer.
    let length: usize = answer.header("content-length")?.parse().ok()?;
    (answer.body.len() == length).then_some(answer)
}
