package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	tokensDir   = "tokens"
	tokenSuffix = ".json"

	// MaxTokenTTL is the longest that a join token can live.
	MaxTokenTTL = 366 * 24 * time.Hour
	// MaxTokenUses is the most uses that a join token can have.
	MaxTokenUses = 1_000_000
	// MaxSchedulerTokenTTL is the longest that a join token for the role scheduler
	// can live. It has one use: it buys the cluster's CA.
	MaxSchedulerTokenTTL = 24 * time.Hour
	// keepExpired is how long an expired token stays listed, so that the log can
	// say why a late node was refused.
	keepExpired = 7 * 24 * time.Hour
)

// TokenInfo is what a CA remembers of a join token; the secret is not part of
// it.
type TokenInfo struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// Uses is how many more nodes can join with it.
	Uses int `json:"uses"`
}

// tokenRecord is a token's file, <id>.json.
type tokenRecord struct {
	TokenInfo
	SecretSHA256 []byte `json:"secret_sha256"`
}

// Why a token was not taken; for the log, never for the caller.
var (
	errTokenUnknown = errors.New("no such token: it was never made here, or it was revoked")
	errTokenSecret  = errors.New("the token's secret is wrong")
	errTokenExpired = errors.New("the token has expired")
	errTokenUsedUp  = errors.New("the token's uses are used up")
	errTokenRole    = errors.New("the token is for another role")
)

// tokenStore keeps tokens as files in a directory, under a file lock, so that
// it works the same from several processes.
type tokenStore struct{ dir string }

func openTokens(dir string) (tokenStore, error) {
	if err := makeLockedDir(dir); err != nil {
		return tokenStore{}, err
	}
	return tokenStore{dir: dir}, nil
}

// NewToken makes a join token that gives the role to as many nodes as uses says,
// until ttl has passed. The empty role means node. The role scheduler has one use
// and at most MaxSchedulerTokenTTL: AdoptCA gets the whole CA with it. A token takes
// effect at once in every scheduler that uses this directory, and in no other. The
// result is the only copy of the secret.
func (ca *CA) NewToken(role Role, ttl time.Duration, uses int) (string, error) {
	if role == "" {
		role = RoleNode
	}
	if _, err := ParseRole(string(role)); err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	longest := MaxTokenTTL
	if role == RoleScheduler {
		longest = MaxSchedulerTokenTTL
		if uses != 1 {
			return "", fmt.Errorf("make join token: %d uses: a token for a %s buys the cluster's CA, and has one use", uses, role)
		}
	}
	if ttl <= 0 || ttl > longest {
		return "", fmt.Errorf("make join token: lifetime %s: want more than 0 and at most %s for a %s", ttl, longest, role)
	}
	if uses < 1 || uses > MaxTokenUses {
		return "", fmt.Errorf("make join token: %d uses: want 1 to %d", uses, MaxTokenUses)
	}
	token, err := newToken(pinOf(ca.cert))
	if err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	now := time.Now().Round(0).UTC()
	hash := sha256.Sum256([]byte(token.secret))
	record := tokenRecord{
		TokenInfo:    TokenInfo{ID: token.ID, Role: role, Created: now, Expires: now.Add(ttl), Uses: uses},
		SecretSHA256: hash[:],
	}
	if err := ca.tokens.add(record, now); err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	return token.reveal(), nil
}

// Tokens lists the join tokens, oldest first, with those that expired during
// the last week.
func (ca *CA) Tokens() ([]TokenInfo, error) {
	tokens, err := ca.tokens.list()
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	return tokens, nil
}

// RevokeToken deletes a join token, given its ID or the whole token. Nodes that
// joined with it keep their certificates; see Deny. It is an error when there
// is none.
func (ca *CA) RevokeToken(id string) error {
	if token, err := ParseToken(id); err == nil {
		id = token.ID
	}
	if !validTokenID(id) {
		return fmt.Errorf("revoke join token: want the token or its ID of %d hex digits", tokenIDLength)
	}
	if err := ca.tokens.remove(id); err != nil {
		return fmt.Errorf("revoke join token %s: %w", id, err)
	}
	return nil
}

func (s tokenStore) path(id string) string { return filepath.Join(s.dir, id+tokenSuffix) }

// locked runs f while no other process or goroutine changes tokens.
func (s tokenStore) locked(f func() error) error { return withLock(s.dir, f) }

func (s tokenStore) add(record tokenRecord, now time.Time) error {
	return s.locked(func() error {
		if err := s.purge(now); err != nil {
			return err
		}
		return s.write(record)
	})
}

// take uses the token once and returns the role it gives. When it returns nil,
// the use is on disk. A role that fits refuses costs no use: errTokenRole.
func (s tokenStore) take(id, secret string, fits func(Role) bool, now time.Time) (role Role, err error) {
	if !validTokenID(id) {
		return "", errTokenUnknown
	}
	err = s.locked(func() error {
		record, err := s.read(id)
		if err != nil {
			return err
		}
		hash := sha256.Sum256([]byte(secret))
		if subtle.ConstantTimeCompare(hash[:], record.SecretSHA256) != 1 {
			return errTokenSecret
		}
		if !now.Before(record.Expires) {
			return errTokenExpired
		}
		if record.Uses < 1 {
			return errTokenUsedUp
		}
		if !fits(record.Role) {
			return errTokenRole
		}
		record.Uses--
		role = record.Role
		return s.write(record)
	})
	if err != nil {
		return "", err
	}
	return role, nil
}

func (s tokenStore) remove(id string) error {
	return s.locked(func() error {
		if err := os.Remove(s.path(id)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return errTokenUnknown
			}
			return err
		}
		return syncDir(s.dir)
	})
}

func (s tokenStore) list() ([]TokenInfo, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var tokens []TokenInfo
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), tokenSuffix)
		if !ok || !validTokenID(id) {
			continue
		}
		record, err := s.read(id)
		if errors.Is(err, errTokenUnknown) {
			continue
		}
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, record.TokenInfo)
	}
	slices.SortFunc(tokens, func(a, b TokenInfo) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return tokens, nil
}

// purge deletes tokens that have been expired for long.
func (s tokenStore) purge(now time.Time) error {
	tokens, err := s.list()
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if now.After(t.Expires.Add(keepExpired)) {
			if err := os.Remove(s.path(t.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s tokenStore) read(id string) (tokenRecord, error) {
	content, err := os.ReadFile(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return tokenRecord{}, errTokenUnknown
	}
	if err != nil {
		return tokenRecord{}, err
	}
	var record tokenRecord
	if err := json.Unmarshal(content, &record); err != nil {
		return tokenRecord{}, fmt.Errorf("%s is damaged: %w; delete it", s.path(id), err)
	}
	if _, err := ParseRole(string(record.Role)); err != nil || record.ID != id || len(record.SecretSHA256) != sha256.Size {
		return tokenRecord{}, fmt.Errorf("%s is damaged: delete it", s.path(id))
	}
	return record, nil
}

func (s tokenStore) write(record tokenRecord) error {
	content, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(s.path(record.ID), append(content, '\n'))
}
