//! The listening side: connections, how many there may be, and how they end.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    rt,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};
use tower::{BoxError, Service, ServiceExt as _};

use crate::{HEAD_LIMIT, config::Config, upstream::Connection};

/// Takes connections, until it is told to stop.
pub(crate) struct Gateway<S> {
    service: S,
    server: auto::Builder<TokioExecutor>,
    idle_timeout: Duration,
    /// A place for each connection that there may be.
    places: Arc<Semaphore>,
    max_connections: u32,
    stop: watch::Sender<bool>,
}

impl<S, B> Gateway<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(config: &Config, service: S) -> Self {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_read_timeout)
            .max_buf_size(HEAD_LIMIT as usize);
        server
            .http2()
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_header_list_size(HEAD_LIMIT)
            .keep_alive_interval(Some(config.idle_timeout));
        let max_connections = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
        Self {
            service,
            server,
            idle_timeout: config.idle_timeout,
            places: Arc::new(Semaphore::new(max_connections as usize)),
            max_connections,
            stop: watch::Sender::new(false),
        }
    }

    /// Serves until `signal`. With all places taken, whoever else connects waits for one.
    pub(crate) async fn serve(&self, listener: TcpListener, signal: impl Future<Output = ()>) {
        let mut signal = std::pin::pin!(signal);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&listener) => accepted,
                () = &mut signal => return,
            };
            match accepted {
                Ok((stream, connection)) => self.spawn(stream, connection),
                Err(error) => {
                    // Too many open files, say: others close theirs meanwhile.
                    eprintln!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, Connection)> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        let (stream, client) = listener.accept().await?;
        // Without them it works as well. A client that vanished is noticed by the second one, also
        // where nobody writes to it.
        let _ = stream.set_nodelay(true);
        let keep_alive = TcpKeepalive::new().with_time(self.idle_timeout);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
        Ok((
            stream,
            Connection {
                client,
                place: Arc::new(place),
            },
        ))
    }

    fn spawn(&self, stream: TcpStream, connection: Connection) {
        let activity = Arc::new(Activity::default());
        let service = service_fn({
            let (service, activity) = (self.service.clone(), Arc::clone(&activity));
            let connection = connection.clone();
            move |mut request: Request<Incoming>| {
                let mut running = Running::begin(&activity);
                request.extensions_mut().insert(connection.clone());
                let answer = service.clone().oneshot(request);
                async move {
                    let answer = answer.await?;
                    // Over HTTP/2 nobody asks for the body before its client wants some of it.
                    running.offer(true);
                    Ok::<_, Infallible>(answer.map(|body| Answering { body, running }))
                }
            }
        });
        let serving = self.server.serve_connection_with_upgrades(
            Watched {
                io: TokioIo::new(stream),
                activity: Arc::clone(&activity),
            },
            service,
        );
        let serving = serving.into_owned();
        let (mut stop, idle_timeout) = (self.stop.subscribe(), self.idle_timeout);
        tokio::spawn(async move {
            let mut serving = std::pin::pin!(serving);
            let go_on = tokio::select! {
                // However it ended: clients come and go.
                _ = serving.as_mut() => false,
                _ = stop.wait_for(|stop| *stop) => true,
                () = activity.ends(idle_timeout) => true,
            };
            if go_on {
                serving.as_mut().graceful_shutdown();
                // Some time to part, and for an answer as long as it is taken.
                activity.moved();
                tokio::select! {
                    _ = serving => {}
                    () = activity.ends(idle_timeout) => {}
                }
            }
            drop(connection);
        });
    }
}

impl<S> Gateway<S> {
    /// Lets each connection finish what it has begun. Returns when there is none left; until then,
    /// how many there are is told by [`connections`](Self::connections).
    pub(crate) async fn shutdown(&self) {
        self.stop.send_replace(true);
        // Nobody closes it.
        let _ = self.places.acquire_many(self.max_connections).await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.max_connections as usize - self.places.available_permits()
    }
}

/// What a connection is used for.
#[derive(Debug)]
struct Activity(Mutex<State>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// Requests with something to wait for other than that the client takes their answers.
    running: usize,
    /// When the last one began or ended, or the client last took something.
    last: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(State {
            running: 0,
            last: Instant::now(),
        }))
    }
}

impl Activity {
    fn change(&self, change: impl FnOnce(&mut usize)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.running);
        state.last = Instant::now();
    }

    fn moved(&self) {
        self.change(|_| {});
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        // A ping, of 17 bytes, is no part of an answer, and is taken by those who take nothing else.
        if matches!(written, Poll::Ready(Ok(18..))) {
            self.moved();
        }
        written
    }

    /// Returns when there was no request for so long, or none whose client took of its answer.
    async fn ends(&self, idle_timeout: Duration) {
        loop {
            let State { running, last } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let end = match running {
                0 => last + idle_timeout,
                _ => now + idle_timeout,
            };
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// A request with something to wait for.
struct Running {
    connection: Arc<Activity>,
    /// Whether its client has yet to take what there is of its answer.
    offered: bool,
}

impl Running {
    fn begin(connection: &Arc<Activity>) -> Self {
        connection.change(|running| *running += 1);
        Self {
            connection: Arc::clone(connection),
            offered: false,
        }
    }

    fn offer(&mut self, offered: bool) {
        if offered != self.offered {
            self.offered = offered;
            self.connection.change(|running| match offered {
                true => *running -= 1,
                false => *running += 1,
            });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.offer(true);
    }
}

/// The body of an answer, which is asked for more as fast as the client takes it.
struct Answering<B> {
    body: B,
    running: Running,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.running.offer(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that notes when its client takes something.
struct Watched {
    io: TokioIo<TcpStream>,
    activity: Arc<Activity>,
}

impl rt::Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl rt::Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.activity.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.activity.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
