package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// A second scheduler gets the CA with a token, once, and is one of the cluster: what
// it issues the first takes, and what it gossips with is the same key.
func TestAdoptCA(t *testing.T) {
	ca := testCA(t)
	if _, err := ca.Successor(filepath.Join(t.TempDir(), "next")); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	service, err := ca.Server(Options{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, testIdentity(t, ca, RoleScheduler), service)
	token := testToken(t, ca, RoleScheduler, time.Hour, 1)
	state := t.TempDir()
	dir := filepath.Join(state, "ca")
	second, err := AdoptCA(t.Context(), dir, address, token)
	if err != nil {
		t.Fatal(err)
	}
	if second.Cluster() != ca.Cluster() {
		t.Fatalf("the second has the cluster %s, the first %s", second.Cluster(), ca.Cluster())
	}
	for _, label := range []string{"a", "b"} {
		one, err := ca.DeriveKey(label)
		other, err2 := second.DeriveKey(label)
		if err != nil || err2 != nil || len(one) != 32 || !bytes.Equal(one, other) {
			t.Errorf("%s: derived %x and %x, %v, %v", label, one, other, err, err2)
		}
	}
	derived := map[string]bool{}
	for _, from := range []*CA{ca, testCA(t)} {
		for _, label := range []string{"a", "b"} {
			key, err := from.DeriveKey(label)
			if err != nil || derived[string(key)] {
				t.Errorf("label %s of %s gives a key that another one gives, or %v", label, from.Cluster(), err)
			}
			derived[string(key)] = true
		}
	}
	roots, err := second.Roots()
	if want, _ := ca.Roots(); err != nil || len(roots) != len(want) {
		t.Errorf("the second trusts %d roots, the first %d, %v", len(roots), len(want), err)
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the state directory: %v, %v", entries, err)
	}
	node := testIdentity(t, second, RoleNode)
	if err := holdings(t, dial(t, address, node.ClientCredentials(anyRole()))); err != nil {
		t.Errorf("a node of the second is refused by the first: %v", err)
	}
	// The CA is here now: neither token nor scheduler is needed, and the token is spent.
	for _, again := range []string{"", token} {
		if _, err := AdoptCA(t.Context(), dir, closedAddress(t), again); err != nil {
			t.Errorf("after a restart: %v", err)
		}
	}
	if _, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, token); !errors.Is(err, ErrTokenRefused) {
		t.Errorf("the token was taken a second time: %v", err)
	}
	checkKeyIsNotIn(t, ca, fmt.Sprint(logs.All()))
}

func checkKeyIsNotIn(t *testing.T, ca *CA, text string) {
	t.Helper()
	raw, err := ca.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, form := range map[string]string{
		"hex": hex.EncodeToString(raw), "base64": base64.StdEncoding.EncodeToString(raw)[:40],
		"decimal": new(big.Int).SetBytes(raw).String(), "raw": string(raw), "bytes": strings.Trim(fmt.Sprint(raw), "[]"),
	} {
		if strings.Contains(text, form) {
			t.Errorf("the log shows the CA's key as %s", name)
		}
	}
}

func TestAdoptCARefused(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	address := serveCA(t, ca)
	good := testToken(t, ca, RoleScheduler, time.Hour, 1)
	for name, c := range map[string]struct {
		address, token string
		want           error
	}{
		"no token":                   {address, "", ErrNoToken},
		"token of a node":            {address, testToken(t, ca, RoleNode, time.Hour, 1), ErrWrongRole},
		"token of another cluster":   {address, testToken(t, other, RoleScheduler, time.Hour, 1), ErrWrongCluster},
		"nobody there":               {closedAddress(t), good, ErrUnreachable},
		"scheduler of another one":   {serveCA(t, other), good, ErrWrongCluster},
		"token that was made up":     {address, parsedUnknown(t, ca).reveal(), ErrTokenRefused},
		"something that is no token": {address, "dmf1.x", nil},
	} {
		dir := filepath.Join(t.TempDir(), "ca")
		_, err := AdoptCA(t.Context(), dir, c.address, c.token)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was kept: %v", name, err)
		}
	}
	// A CA of its own stays what it is.
	if _, err := AdoptCA(t.Context(), other.dir, address, good); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("over another CA: %v", err)
	}
	// None of it has used the token up, nor does a node that tries to join with it.
	if _, err := Join(t.Context(), t.TempDir(), address, good, Options{}); !errors.Is(err, ErrWrongRole) {
		t.Errorf("a node joined with a scheduler's token: %v", err)
	}
	if _, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, good); err != nil {
		t.Error(err)
	}
}

func parsedUnknown(t *testing.T, ca *CA) Token {
	t.Helper()
	token := parsedToken(t, ca, time.Hour, 1)
	if err := ca.RevokeToken(token.ID); err != nil {
		t.Fatal(err)
	}
	return token
}

// What comes for a token is checked: a server that has the pinned CA may still send
// something else.
func TestKeepAuthorityChecks(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	token, err := ParseToken(testToken(t, ca, RoleScheduler, time.Hour, 1))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(c *CA) *damselflyv1.Authority {
		key, err := (&server{ca: c, log: zap.NewNop()}).authority()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	mixed := answer(ca)
	mixed.Key = answer(other).GetKey()
	for name, a := range map[string]*damselflyv1.Authority{
		"nothing": {}, "another CA": answer(other), "another key": mixed,
		"no key": {Roots: answer(ca).GetRoots()}, "damaged": {Roots: [][]byte{{1}}, Key: answer(ca).GetKey()},
	} {
		dir := filepath.Join(t.TempDir(), "ca")
		if err := keepAuthority(dir, token, a); err == nil {
			t.Errorf("%s was kept", name)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was kept: %v", name, err)
		}
	}
	if err := keepAuthority(filepath.Join(t.TempDir(), "ca"), token, answer(ca)); err != nil {
		t.Error(err)
	}
}
