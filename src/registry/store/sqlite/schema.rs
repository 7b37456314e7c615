/// What brings a database from each version to the next; entries are never changed once released.
pub(super) const MIGRATIONS: [&str; 2] = [V1, V2];

const V1: &str = "
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL,
    ver INTEGER NOT NULL
) STRICT;
CREATE TABLE networks (
    network TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    label TEXT NOT NULL UNIQUE,
    operator TEXT NOT NULL,
    root_grant TEXT,
    revoked INTEGER NOT NULL DEFAULT 0,
    ver INTEGER NOT NULL DEFAULT 0,
    domain_ver INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX networks_by_change ON networks (domain_ver);
CREATE TABLE names (
    network TEXT NOT NULL,
    name TEXT NOT NULL,
    agent TEXT NOT NULL,
    ephemeral INTEGER NOT NULL,
    granted INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    PRIMARY KEY (network, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_agent ON names (network, agent);
CREATE TABLE iids (
    network TEXT NOT NULL,
    address TEXT NOT NULL,
    agent TEXT NOT NULL,
    PRIMARY KEY (network, address)
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    network TEXT NOT NULL,
    agent TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    role TEXT NOT NULL,
    text TEXT NOT NULL,
    content TEXT NOT NULL,
    lease INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    PRIMARY KEY (network, agent)
) STRICT;
CREATE UNIQUE INDEX records_by_name ON records (network, name);
CREATE UNIQUE INDEX records_by_address ON records (network, address);
CREATE INDEX records_by_lease ON records (lease);
CREATE TABLE links (
    network TEXT NOT NULL,
    link TEXT NOT NULL,
    agent TEXT NOT NULL,
    PRIMARY KEY (network, link, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX links_by_agent ON links (network, agent);
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    network TEXT NOT NULL,
    token TEXT NOT NULL,
    token_grant TEXT NOT NULL,
    ancestors TEXT NOT NULL,
    uses INTEGER NOT NULL,
    used INTEGER NOT NULL,
    closes INTEGER NOT NULL,
    UNIQUE (network, token)
) STRICT;
CREATE TABLE admissions (
    network TEXT NOT NULL,
    agent TEXT NOT NULL,
    name TEXT NOT NULL,
    token TEXT NOT NULL,
    first INTEGER NOT NULL,
    PRIMARY KEY (network, agent, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    network TEXT NOT NULL,
    target TEXT NOT NULL,
    issuer TEXT NOT NULL,
    text TEXT NOT NULL,
    expires INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    PRIMARY KEY (network, target, issuer)
) STRICT;
CREATE INDEX requests_by_issuer ON requests (network, issuer);
CREATE INDEX requests_by_end ON requests (expires);
CREATE TABLE consents (
    network TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    active INTEGER NOT NULL,
    text TEXT NOT NULL,
    expires INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    PRIMARY KEY (network, issuer, subject)
) STRICT;
CREATE INDEX consents_by_subject ON consents (network, subject);
CREATE INDEX consents_by_end ON consents (expires);
CREATE TABLE revocations (
    network TEXT NOT NULL,
    hash TEXT NOT NULL,
    author TEXT NOT NULL,
    text TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    domain_ver INTEGER NOT NULL,
    PRIMARY KEY (network, hash)
) STRICT;
CREATE INDEX revocations_by_change ON revocations (domain_ver);
CREATE TABLE gateways (
    gateway TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    content TEXT NOT NULL,
    lease INTEGER NOT NULL,
    domain_ver INTEGER NOT NULL
) STRICT;
CREATE INDEX gateways_by_change ON gateways (domain_ver);
CREATE TABLE seqs (
    network TEXT NOT NULL,
    kind TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    keep INTEGER NOT NULL,
    PRIMARY KEY (network, kind, issuer, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX seqs_by_end ON seqs (keep);
";

/// What ephemeral agents said that left, and to whom it is told.
const V2: &str = "
CREATE TABLE farewells (
    network TEXT NOT NULL,
    agent TEXT NOT NULL,
    text TEXT NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (network, agent)
) STRICT;
CREATE INDEX farewells_by_end ON farewells (expires);
CREATE TABLE farewells_to (
    network TEXT NOT NULL,
    peer TEXT NOT NULL,
    agent TEXT NOT NULL,
    ver INTEGER NOT NULL,
    PRIMARY KEY (network, peer, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX farewells_to_by_agent ON farewells_to (network, agent);
";
