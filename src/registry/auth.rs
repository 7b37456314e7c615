//! Pure: proving who sent an HTTP request, in the manner of RFC 9449.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

use crate::id::{Did, IdentityKey, NetworkId, UnixTime};
use crate::statement::{Auth, Head, Statement, StatementError};

/// How long a proof holds; also how far the two clocks may differ (protocol.md section 2).
pub const PROOF_LIFE: Duration = Duration::from_secs(60);

/// One HTTP request, as both ends see it.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The registry's key.
    pub registry: Did,
    pub method: &'a str,
    /// Path and query as sent.
    pub target: &'a str,
    pub body: &'a [u8],
}

/// Who sent a request, for which network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Proven {
    pub key: Did,
    /// None for calls about the domain.
    pub network: Option<NetworkId>,
}

/// Why a request does not prove who sent it.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AuthError {
    #[error("no `Authorization: Bearer` with an agn-auth statement")]
    Missing,
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error("signed {0}, too far from the registry's time")]
    ClockSkew(UnixTime),
    #[error("a proof holds for at most {} s", PROOF_LIFE.as_secs())]
    TooLong,
    #[error("the proof is for another {0}")]
    Other(&'static str),
}

/// Signs the proof that goes with a request.
pub fn sign(
    key: &IdentityKey,
    network: Option<NetworkId>,
    request: &Signed<'_>,
    now: UnixTime,
) -> Result<Statement<Auth>, StatementError> {
    let head = Head {
        subject: key.did(),
        network,
        issued: now,
        expires: now + PROOF_LIFE,
        seq: now.as_millis(),
    };
    let claims = Auth {
        aud: request.registry,
        htm: request.method.to_owned(),
        htu: request.target.to_owned(),
        bh: body_hash(request.body),
    };
    Statement::sign(key, head, claims)
}

/// Opens a proof and checks all of it that needs no body.
pub fn open(text: &str, now: UnixTime) -> Result<Statement<Auth>, AuthError> {
    let proof = Statement::<Auth>::open(text)?;
    if proof.issuer() != proof.subject() {
        return Err(AuthError::Other("subject than its signer"));
    }
    if proof.expires().since(proof.issued()) > PROOF_LIFE {
        return Err(AuthError::TooLong);
    }
    if proof.check_time(now).is_err() {
        return Err(AuthError::ClockSkew(proof.issued()));
    }
    Ok(proof)
}

/// Checks that an opened proof is for exactly this request.
pub fn check(proof: &Statement<Auth>, request: &Signed<'_>) -> Result<Proven, AuthError> {
    let claims = proof.claims();
    let other = [
        (claims.aud != request.registry, "registry"),
        (claims.htm != request.method, "method"),
        (claims.htu != request.target, "path or query"),
        (claims.bh != body_hash(request.body), "body"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what));
    match other {
        Some(what) => Err(AuthError::Other(what)),
        None => Ok(Proven {
            key: proof.issuer(),
            network: proof.network(),
        }),
    }
}

fn body_hash(body: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, body).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key(n: u8) -> IdentityKey {
        IdentityKey::from_seed([n; 32])
    }

    fn request(body: &[u8]) -> Signed<'_> {
        Signed {
            registry: key(4).did(),
            method: "PUT",
            target: "/v1/x?a=1",
            body,
        }
    }

    fn proof() -> Statement<Auth> {
        sign(&key(1), None, &request(b"body"), NOW).unwrap()
    }

    #[test]
    fn a_proof_is_for_one_request_only() {
        let sent = request(b"body");
        let checked = |r: Signed<'_>| check(&open(proof().text(), NOW).unwrap(), &r);

        assert_eq!(checked(sent).unwrap().key, key(1).did());
        for other in [
            request(b"other"),
            Signed {
                method: "POST",
                ..sent
            },
            Signed {
                target: "/v1/x?a=2",
                ..sent
            },
            Signed {
                registry: key(5).did(),
                ..sent
            },
        ] {
            assert!(matches!(checked(other), Err(AuthError::Other(_))));
        }
    }

    #[test]
    fn a_proof_of_another_time_is_a_clock_skew() {
        for now in [NOW + PROOF_LIFE, NOW.before(Duration::from_secs(61))] {
            let opened = open(proof().text(), now);
            assert_eq!(opened.unwrap_err(), AuthError::ClockSkew(NOW));
        }
    }

    #[test]
    fn a_proof_that_holds_for_long_is_refused() {
        let head = Head {
            subject: key(1).did(),
            network: None,
            issued: NOW,
            expires: NOW + 2 * PROOF_LIFE,
            seq: NOW.as_millis(),
        };
        let long = Statement::sign(&key(1), head, proof().claims().clone()).unwrap();

        assert_eq!(open(long.text(), NOW).unwrap_err(), AuthError::TooLong);
    }
}
