//! Calls to the daemon over its socket.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{RequestBuilder, Response};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use serde::{Serialize, de::DeserializeOwned};

use crate::cli::capture::ENDLESS;
use crate::cli::failure::{Exit, Failure};
use crate::node::causes::with_causes;
use crate::wire::api::local::Versioned;
use crate::wire::api::problem::Problem;

/// Long enough for the daemon's own call to a registry, which may take 20 s.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A daemon's socket.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Result<Self, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(
                Exit::Failed,
                format!("cannot prepare a local call: {error}"),
            )
        };
        // No TLS is spoken on a socket; given none, reqwest would look for the host's CA bundle.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(&error))?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            http,
            socket: socket.to_owned(),
        })
    }

    /// Tells whether somebody listens at the socket.
    pub(super) fn is_up(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, Failure> {
        self.call(self.http.get(url(path)).query(query)).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.call(self.http.post(url(path)).json(body)).await
    }

    /// Begins an answer that goes on until the caller has enough.
    pub(super) async fn stream(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<Response, Failure> {
        let request = self.http.get(url(path)).query(query).timeout(ENDLESS);
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let problem = serde_json::from_slice::<Problem>(&self.body(response).await?);
        Err(problem.map_or_else(|_| self.strange(), Failure::from))
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        let failed = !response.status().is_success();
        let bytes = self.body(response).await?;
        if failed {
            let problem = serde_json::from_slice::<Problem>(&bytes);
            return Err(problem.map_or_else(|_| self.strange(), Failure::from));
        }
        let answer = serde_json::from_slice::<Versioned<T>>(&bytes);
        Ok(answer.map_err(|_| self.strange())?.body)
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>, Failure> {
        let bytes = response.bytes().await.map_err(|e| self.no_answer(&e))?;
        Ok(bytes.to_vec())
    }

    fn strange(&self) -> Failure {
        let what = format!("the answer at {} makes no sense", self.socket.display());
        Failure::new(Exit::Failed, what)
            .hint("the daemon may be of another version: restart it (agentnet version tells both)")
    }

    fn no_answer(&self, error: &reqwest::Error) -> Failure {
        let socket = self.socket.display();
        if error.is_timeout() {
            return Failure::new(Exit::Unreachable, format!("no answer in time at {socket}"));
        }
        match io_kind(error) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Failure::new(Exit::Unreachable, format!("no daemon answers at {socket}"))
                    .hint("start it with `agentnet up`, or name its socket with --socket PATH")
            }
            Some(io::ErrorKind::PermissionDenied) => {
                Failure::new(Exit::Denied, format!("no permission to open {socket}"))
                    .hint("run as the user the daemon runs as, or as root")
            }
            _ => {
                let why = with_causes(error);
                Failure::new(Exit::Unreachable, format!("no answer at {socket}: {why}"))
            }
        }
    }
}

/// The host is not used; HTTP wants one.
fn url(path: &str) -> String {
    format!("http://agentnet{path}")
}

fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut cause = error.source();
    while let Some(next) = cause {
        if let Some(io) = next.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = next.source();
    }
    None
}
