use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{query, query_scalar};

use crate::id::{AgentId, UnixTime};
use crate::registry::store::sqlite::{members, millis, next_version, parsed, take_sequence};
use crate::registry::store::{Departure, Farewell, Kept, StoreError};

/// How long those are told of a departure who were away then; consents with who left end by themselves.
const TOLD: Duration = Duration::from_secs(7 * 86_400);

/// Who had to do with an agent: by a consent of either, or a request of its own.
const PEERS: &str = "SELECT subject AS peer FROM consents WHERE network = ?1 AND issuer = ?2
     UNION SELECT issuer FROM consents WHERE network = ?1 AND subject = ?2
     UNION SELECT n.agent FROM requests r
     JOIN names n ON n.network = r.network AND n.name = r.target
     WHERE r.network = ?1 AND r.issuer = ?2 AND n.agent <> ?2";

pub(super) async fn leave(
    tx: &mut SqliteConnection,
    farewell: &Farewell,
    now: UnixTime,
) -> Result<Departure, StoreError> {
    let network = farewell.network.to_string();
    let agent = farewell.sequence.issuer.to_string();
    let untold = |kept| Departure {
        kept,
        told: Vec::new(),
    };
    // Only one that is known here may leave a number behind, so strangers fill nothing.
    let known = query("UPDATE names SET seen = ? WHERE network = ? AND agent = ?")
        .bind(millis(now))
        .bind(&network)
        .bind(&agent)
        .execute(&mut *tx)
        .await?;
    if known.rows_affected() == 0 {
        return Ok(untold(Kept::Same));
    }
    let kept = take_sequence(tx, &network, &farewell.sequence).await?;
    if kept != Kept::New {
        return Ok(untold(kept));
    }
    members::forget(tx, &network, &agent).await?;
    let lasting = query_scalar::<_, i64>(
        "SELECT count(*) FROM names WHERE network = ? AND agent = ? AND ephemeral = 0",
    );
    let lasting = lasting.bind(&network).bind(&agent).fetch_one(&mut *tx);
    if lasting.await? > 0 {
        return Ok(untold(kept));
    }
    let told = tell(tx, (&network, &agent), farewell, now).await?;
    forget_all(tx, &network, &agent).await?;
    Ok(Departure { kept, told })
}

/// Keeps the farewell of an agent for its peers, and returns them.
async fn tell(
    tx: &mut SqliteConnection,
    (network, agent): (&str, &str),
    farewell: &Farewell,
    now: UnixTime,
) -> Result<Vec<AgentId>, StoreError> {
    let peers = query(PEERS).bind(network).bind(agent);
    let peers = peers.fetch_all(&mut *tx).await?;
    if peers.is_empty() {
        return Ok(Vec::new());
    }
    let expires = (now + TOLD).min(farewell.sequence.keep);
    query("INSERT OR REPLACE INTO farewells (network, agent, text, expires) VALUES (?, ?, ?, ?)")
        .bind(network)
        .bind(agent)
        .bind(&farewell.text)
        .bind(millis(expires))
        .execute(&mut *tx)
        .await?;
    let version = next_version(tx, network).await?;
    let mut told = Vec::new();
    for row in &peers {
        let peer = parsed::<AgentId>(row, "peer")?;
        query(
            "INSERT OR REPLACE INTO farewells_to (network, peer, agent, ver) VALUES (?, ?, ?, ?)",
        )
        .bind(network)
        .bind(peer.to_string())
        .bind(agent)
        .bind(version)
        .execute(&mut *tx)
        .await?;
        told.push(peer);
    }
    Ok(told)
}

/// Forgets whatever an agent said and was told, and gives its names and address free.
async fn forget_all(
    tx: &mut SqliteConnection,
    network: &str,
    agent: &str,
) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM consents WHERE network = ?1 AND issuer = ?2",
        "DELETE FROM consents WHERE network = ?1 AND subject = ?2",
        "DELETE FROM requests WHERE network = ?1 AND issuer = ?2",
        "DELETE FROM names WHERE network = ?1 AND agent = ?2",
        "DELETE FROM iids WHERE network = ?1 AND agent = ?2",
        "DELETE FROM farewells_to WHERE network = ?1 AND peer = ?2",
    ] {
        query(sql)
            .bind(network)
            .bind(agent)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
