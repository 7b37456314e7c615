//! The registry as its callers see it: node, gateway and command line.

mod error;
mod watch;

use std::time::{Duration, UNIX_EPOCH};

use reqwest::header::DATE;
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};

use crate::id::{
    AgentId, Did, DomainId, IdentityKey, Label, MemberName, NetworkId, NetworkPrefix, OverlayIp,
    UnixTime,
};
use crate::os::tls::{Pin, pinned_client};
use crate::os::wss::Proxies;
use crate::registry::auth::{self, Signed};
use crate::statement::{
    Admission, Chain, Consent, Gateway, Grant, Record, Registry, Request, Revocation, Statement,
};
use crate::wire::api::problem::Problem;
use crate::wire::api::registry::{
    ActivateNetwork, ConsentBody, CreateNetwork, DomainInfo, GatewayBody, GatewayEnrolled,
    GrantBody, Holder, Joined, MAX_BODY, NetworkCreated, NetworkEntry, NetworkList, RecordBody,
    Refreshed, RequestBody, Resolve, Resolved, RevocationBody, TokenEntry, TokenList,
};

pub use error::ClientError;
pub use watch::{EventStream, WatchEvent};

/// Reaching a registry takes a few round trips; what is slower is as good as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Answering any call but the watch; above the registry's own limit for one request.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Below the time after which a registry closes an idle connection, lest one is used as it closes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most pages of a list that are fetched; bounds what a hostile registry can make us hold.
const MAX_PAGES: usize = 1000;

/// Who calls: the key that signs, and the network the call is about.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub key: &'a IdentityKey,
    /// None for calls about the domain.
    pub network: Option<NetworkId>,
    pub now: UnixTime,
}

impl<'a> Caller<'a> {
    /// Makes the caller of calls about one network.
    pub const fn member(key: &'a IdentityKey, network: NetworkId, now: UnixTime) -> Self {
        Self {
            key,
            network: Some(network),
            now,
        }
    }

    /// Makes the caller of calls about the domain: an operator or gateway.
    pub const fn domain(key: &'a IdentityKey, now: UnixTime) -> Self {
        Self {
            key,
            network: None,
            now,
        }
    }
}

/// What joining brought.
#[derive(Clone, Debug)]
pub struct Membership {
    /// None when the chain goes through no token.
    pub admission: Option<Statement<Admission>>,
    pub address: OverlayIp,
    pub lease: Duration,
}

/// What refreshing a record brought.
#[derive(Clone, Debug)]
pub struct Lease {
    pub lease: Duration,
    /// None while the admission in the record has enough of its life left.
    pub admission: Option<Statement<Admission>>,
}

/// A connection to one registry whose key the domain root vouches for.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    http: reqwest::Client,
    url: String,
    registry: Did,
    domain: DomainId,
    info: DomainInfo,
}

/// Reaches registries as the environment says: TLS to the pinned key goes through a proxy as it is.
fn by_environment() -> reqwest::Proxy {
    let read = Proxies::of_environment(&|name| std::env::var(name).ok());
    let proxies = read.unwrap_or_else(|error| {
        tracing::warn!(%error, "The proxy that the environment names is not used");
        Proxies::default()
    });
    reqwest::Proxy::custom(move |url| {
        let host = url.host_str()?.trim_matches(['[', ']']);
        proxies.of(host).map(|proxy| proxy.url().to_string())
    })
}

fn http(url: &str, pin: Pin) -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(pinned_client(pin).map_err(ClientError::Tls)?)
        .proxy(by_environment())
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build()
        .map_err(|error| ClientError::unreachable(url, &error))
}

/// Asks the registry at `url` what time it has, to the second.
pub async fn time_of(url: &str, pin: Pin) -> Result<UnixTime, ClientError> {
    let url = url.trim_end_matches('/');
    let asked = http(url, pin)?.get(format!("{url}/healthz"));
    let answer = send(url, asked.timeout(CALL_TIMEOUT)).await?;
    let date = answer
        .headers()
        .get(DATE)
        .and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let since = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    let since = since.ok_or_else(|| ClientError::malformed("an answer without a date"))?;
    Ok(UnixTime::from(since))
}

impl RegistryClient {
    /// Reaches the registry at `url` and checks that it is the one `domain`'s root names.
    pub async fn connect(
        url: &str,
        pin: Pin,
        domain: DomainId,
        now: UnixTime,
    ) -> Result<Self, ClientError> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            return Err(ClientError::BadUrl(url));
        }
        let http = http(&url, pin)?;
        let sent = http.get(format!("{url}/v1/domain")).timeout(CALL_TIMEOUT);
        let info = read::<DomainInfo>(&url, send(&url, sent).await?).await?;
        let registry = named_by(&domain, pin, &info, now)?;
        Ok(Self {
            http,
            url,
            registry,
            domain,
            info,
        })
    }

    /// Returns the registry's key, which enrols members and signs gateways.
    pub const fn registry(&self) -> Did {
        self.registry
    }

    /// Returns the domain's root key.
    pub const fn domain(&self) -> DomainId {
        self.domain
    }

    /// Returns the domain root's statement that names the registry.
    pub fn statement(&self) -> &str {
        &self.info.registry
    }

    /// Returns the registry's URL without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the gateways the registry listed on connecting, those that verify.
    pub fn gateways(&self) -> Vec<Statement<Gateway>> {
        let texts = self.info.gateways.iter();
        texts
            .filter_map(|text| self.open_gateway(text).ok())
            .collect()
    }

    /// Opens a gateway statement and checks that this domain signed it.
    pub fn open_gateway(&self, text: &str) -> Result<Statement<Gateway>, ClientError> {
        let gateway = Statement::<Gateway>::open(text)?;
        if gateway.issuer() != self.registry && gateway.issuer() != self.domain.did() {
            return Err(ClientError::malformed(
                "a gateway statement of another signer",
            ));
        }
        Ok(gateway)
    }

    /// Creates a network as its operator and returns the prefix for its root grant.
    pub async fn create_network(
        &self,
        caller: &Caller<'_>,
        root: NetworkId,
        label: Label,
    ) -> Result<NetworkPrefix, ClientError> {
        let body = CreateNetwork { root, label };
        let created = self.post::<NetworkCreated>(caller, "/v1/networks", &body);
        Ok(created.await?.prefix)
    }

    /// Lists the networks this operator created.
    pub async fn networks(&self, caller: &Caller<'_>) -> Result<Vec<NetworkEntry>, ClientError> {
        let mut all = Vec::new();
        let mut path = "/v1/networks".to_owned();
        for _ in 0..MAX_PAGES {
            let page = self.get::<NetworkList>(caller, &path).await?;
            all.extend(page.networks);
            let Some(next) = page.next else { break };
            path = format!("/v1/networks?after={next}");
        }
        Ok(all)
    }

    /// Hands in the root grant; `caller` is the network's root key.
    pub async fn activate(
        &self,
        caller: &Caller<'_>,
        grant: &Statement<Grant>,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "")?;
        let body = ActivateNetwork {
            grant: grant.text().to_owned(),
        };
        self.put::<serde_json::Value>(caller, &path, &body).await?;
        Ok(())
    }

    /// Joins with a record whose chain may lack the admission.
    pub async fn join(
        &self,
        caller: &Caller<'_>,
        record: &Statement<Record>,
    ) -> Result<Membership, ClientError> {
        let path = network_path(caller, "/join")?;
        let joined = self
            .post::<Joined>(caller, &path, &record_body(record))
            .await?;
        Ok(Membership {
            admission: self.open_admission(joined.admission)?,
            address: joined.address,
            lease: Duration::from_secs(joined.lease),
        })
    }

    /// Puts the agent's record for another lease.
    pub async fn put_record(
        &self,
        caller: &Caller<'_>,
        record: &Statement<Record>,
    ) -> Result<Lease, ClientError> {
        let path = network_path(caller, "/record")?;
        let put = self
            .put::<Refreshed>(caller, &path, &record_body(record))
            .await?;
        Ok(Lease {
            lease: Duration::from_secs(put.lease),
            admission: self.open_admission(put.admission)?,
        })
    }

    /// Takes the agent's record back by one whose `ttl` is 0.
    pub async fn leave(
        &self,
        caller: &Caller<'_>,
        record: &Statement<Record>,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "/record")?;
        let body = record_body(record);
        self.call::<Refreshed>(caller, Method::DELETE, &path, Some(&body))
            .await?;
        Ok(())
    }

    /// Sends a trust request; the answer is the same whether or not its target exists.
    pub async fn request(
        &self,
        caller: &Caller<'_>,
        request: &Statement<Request>,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "/requests")?;
        let body = RequestBody {
            request: request.text().to_owned(),
        };
        self.post::<serde_json::Value>(caller, &path, &body).await?;
        Ok(())
    }

    /// Hands in a consent or its revocation.
    pub async fn consent(
        &self,
        caller: &Caller<'_>,
        consent: &Statement<Consent>,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "/consents")?;
        let body = ConsentBody {
            consent: consent.text().to_owned(),
        };
        self.post::<serde_json::Value>(caller, &path, &body).await?;
        Ok(())
    }

    /// Asks for the record of a peer that consented to the caller; its chain is yet to be checked.
    pub async fn resolve(
        &self,
        caller: &Caller<'_>,
        whom: &Resolve,
    ) -> Result<Statement<Record>, ClientError> {
        let query = match whom {
            Resolve {
                name: Some(name), ..
            } => format!("/resolve?name={name}"),
            Resolve {
                address: Some(address),
                ..
            } => format!("/resolve?address={address}"),
            Resolve { .. } => return Err(ClientError::malformed("resolve what?")),
        };
        let path = network_path(caller, &query)?;
        let resolved = self.get::<Resolved>(caller, &path).await?;
        Ok(Statement::open(&resolved.record)?)
    }

    /// Makes a join token known to the registry before its first use.
    pub async fn register_token(
        &self,
        caller: &Caller<'_>,
        chain: &Chain,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "/grants")?;
        let body = GrantBody {
            chain: chain.links(),
        };
        self.post::<serde_json::Value>(caller, &path, &body).await?;
        Ok(())
    }

    /// Lists the network's join tokens and what is left of them.
    pub async fn tokens(&self, caller: &Caller<'_>) -> Result<Vec<TokenEntry>, ClientError> {
        let mut all = Vec::new();
        let mut path = network_path(caller, "/tokens")?;
        for _ in 0..MAX_PAGES {
            let page = self.get::<TokenList>(caller, &path).await?;
            all.extend(page.tokens);
            let Some(next) = page.next else { break };
            path = network_path(caller, &format!("/tokens?after={next}"))?;
        }
        Ok(all)
    }

    /// Asks which key holds `name`, and under what other names, as one who manages the network.
    pub async fn holder(
        &self,
        caller: &Caller<'_>,
        name: &MemberName,
    ) -> Result<Holder, ClientError> {
        let path = network_path(caller, &format!("/names?name={name}"))?;
        self.get(caller, &path).await
    }

    /// Asks which names a key holds, as one who manages the network.
    pub async fn names(&self, caller: &Caller<'_>, agent: &AgentId) -> Result<Holder, ClientError> {
        let path = network_path(caller, &format!("/names?agent={agent}"))?;
        self.get(caller, &path).await
    }

    /// Hands in a revocation, which spreads to every member and gateway.
    pub async fn revoke(
        &self,
        caller: &Caller<'_>,
        revocation: &Statement<Revocation>,
    ) -> Result<(), ClientError> {
        let path = network_path(caller, "/revocations")?;
        let body = RevocationBody {
            revocation: revocation.text().to_owned(),
        };
        self.post::<serde_json::Value>(caller, &path, &body).await?;
        Ok(())
    }

    /// Enrols a gateway as the operator.
    pub async fn enrol_gateway(
        &self,
        caller: &Caller<'_>,
        body: &GatewayBody,
    ) -> Result<Statement<Gateway>, ClientError> {
        let enrolled = self.post::<GatewayEnrolled>(caller, "/v1/gateways", body);
        self.open_gateway(&enrolled.await?.statement)
    }

    /// Refreshes a gateway's statement as the gateway.
    pub async fn refresh_gateway(
        &self,
        caller: &Caller<'_>,
        body: &GatewayBody,
    ) -> Result<Statement<Gateway>, ClientError> {
        let path = format!("/v1/gateways/{}/record", body.gateway);
        let enrolled = self.put::<GatewayEnrolled>(caller, &path, body).await?;
        self.open_gateway(&enrolled.statement)
    }

    /// Opens the event stream; `last` is the id of the last event handled, None for a fresh start.
    pub async fn watch(
        &self,
        caller: &Caller<'_>,
        last: Option<&str>,
    ) -> Result<EventStream, ClientError> {
        let path = match caller.network {
            Some(network) => format!("/v1/watch?network={network}"),
            None => "/v1/watch?gateway=".to_owned(),
        };
        let mut request = self.signed(caller, &Method::GET, &path, Vec::new())?;
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        // The stream has no end, so only its beginning has a deadline.
        let opened = tokio::time::timeout(CALL_TIMEOUT, send(&self.url, request)).await;
        let response = opened.map_err(|_| ClientError::silent(&self.url))??;
        if !response.status().is_success() {
            return Err(refusal(&self.url, response).await);
        }
        Ok(EventStream::new(self.url.clone(), response))
    }

    fn open_admission(
        &self,
        text: Option<String>,
    ) -> Result<Option<Statement<Admission>>, ClientError> {
        let Some(text) = text else { return Ok(None) };
        let admission = Statement::<Admission>::open(&text)?;
        if admission.issuer() != self.registry {
            return Err(ClientError::malformed("an admission of another signer"));
        }
        Ok(Some(admission))
    }

    async fn get<T: DeserializeOwned>(
        &self,
        caller: &Caller<'_>,
        path: &str,
    ) -> Result<T, ClientError> {
        self.call(caller, Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        caller: &Caller<'_>,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(caller, Method::POST, path, Some(body)).await
    }

    async fn put<T: DeserializeOwned>(
        &self,
        caller: &Caller<'_>,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(caller, Method::PUT, path, Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        caller: &Caller<'_>,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map_or_else(Vec::new, |body| {
            serde_json::to_vec(body).expect("a body is plain strings and numbers")
        });
        let request = self.signed(caller, &method, path, body)?;
        let response = send(&self.url, request.timeout(CALL_TIMEOUT)).await?;
        read(&self.url, response).await
    }

    fn signed(
        &self,
        caller: &Caller<'_>,
        method: &Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<RequestBuilder, ClientError> {
        let request = Signed {
            registry: self.registry,
            method: method.as_str(),
            target: path,
            body: &body,
        };
        let proof = auth::sign(caller.key, caller.network, &request, caller.now)?;
        let url = format!("{}{path}", self.url);
        let mut built = self.http.request(method.clone(), url);
        built = built.bearer_auth(proof.text());
        if !body.is_empty() {
            built = built.header("content-type", "application/json").body(body);
        }
        Ok(built)
    }
}

/// Returns the registry's key if the domain root names it with this pin.
fn named_by(
    domain: &DomainId,
    pin: Pin,
    info: &DomainInfo,
    now: UnixTime,
) -> Result<Did, ClientError> {
    let named = Statement::<Registry>::open(&info.registry)?;
    let right = named.issuer() == domain.did() && named.claims().pin == pin.to_string();
    if !right {
        return Err(ClientError::WrongDomain);
    }
    // A clock that is behind shows on the first signed call, with the registry's time beside it.
    if now >= named.expires() {
        return Err(ClientError::Lapsed(named.expires()));
    }
    Ok(named.subject())
}

fn record_body(record: &Statement<Record>) -> RecordBody {
    RecordBody {
        record: record.text().to_owned(),
    }
}

fn network_path(caller: &Caller<'_>, rest: &str) -> Result<String, ClientError> {
    let network = caller.network;
    let network = network.ok_or_else(|| ClientError::malformed("the call needs a network"))?;
    Ok(format!("/v1/networks/{network}{rest}"))
}

async fn send(url: &str, request: RequestBuilder) -> Result<Response, ClientError> {
    let sent = request.send().await;
    sent.map_err(|error| ClientError::unreachable(url, &error))
}

async fn read<T: DeserializeOwned>(url: &str, response: Response) -> Result<T, ClientError> {
    if !response.status().is_success() {
        return Err(refusal(url, response).await);
    }
    let body = bounded_body(url, response).await?;
    serde_json::from_slice(&body).map_err(|error| ClientError::malformed(&error.to_string()))
}

async fn refusal(url: &str, response: Response) -> ClientError {
    let status = response.status();
    let body = match bounded_body(url, response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => ClientError::refused(problem),
        Err(_) => ClientError::malformed(&format!("status {status} without a problem")),
    }
}

async fn bounded_body(url: &str, mut response: Response) -> Result<Vec<u8>, ClientError> {
    /// Lists are paged below this, and nothing else comes near it.
    const MAX_ANSWER: usize = 8 * MAX_BODY;
    let mut body = Vec::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| ClientError::unreachable(url, &error))?
    {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err(ClientError::malformed("the answer is too large"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}
