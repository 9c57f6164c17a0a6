package identity

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// twinOf is the same CA in another directory, as a further scheduler has it: it
// knows none of the other's join tokens.
func twinOf(t *testing.T, ca *CA) *CA {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{caKeyFile, caCertFile} {
		content, err := os.ReadFile(filepath.Join(ca.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	twin, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return twin
}

func others(addresses ...string) func() []string { return func() []string { return addresses } }

// The token is known to one scheduler only, which is neither the first that is
// asked nor the only one that lives.
func TestJoinFindsTheSchedulerThatKnowsTheToken(t *testing.T) {
	ca := testCA(t)
	token := testToken(t, ca, RoleNode, time.Hour, 1)
	knows, not := serveCA(t, ca), serveCA(t, twinOf(t, ca))
	id, err := Join(t.Context(), t.TempDir(), closedAddress(t), token, Options{Role: RoleNode, Others: others(not, knows)})
	if err != nil {
		t.Fatal(err)
	}
	if id.Peer().Cluster != ca.Cluster() {
		t.Errorf("joined %s", id.Peer())
	}
	dead := closedAddress(t)
	_, err = Join(t.Context(), t.TempDir(), dead, token, Options{Role: RoleNode, Others: others(not, knows)})
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrTokenRefused) {
		t.Errorf("a token that is used up: %v", err)
	}
	for _, address := range []string{dead, not, knows} {
		if !strings.Contains(err.Error(), address) {
			t.Errorf("the error does not tell of %s: %v", address, err)
		}
	}
}

// A token for another role is not carried on to schedulers that do not know it.
func TestWrongRoleEndsTheRound(t *testing.T) {
	ca := testCA(t)
	token := testToken(t, ca, RoleSeed, time.Hour, 1)
	_, err := Join(t.Context(), t.TempDir(), serveCA(t, ca), token, Options{Role: RoleNode, Others: others(closedAddress(t))})
	if !errors.Is(err, ErrWrongRole) || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestRenewalComesFromAnyScheduler(t *testing.T) {
	ca := testCA(t)
	first := serveCA(t, ca)
	var now []string
	id, err := Join(t.Context(), t.TempDir(), first, testToken(t, ca, RoleNode, time.Hour, 1), Options{Others: func() []string { return now }})
	if err != nil {
		t.Fatal(err)
	}
	id.issuer.(*anyOf).scheduler = closedAddress(t) // it has gone since
	if err := id.Renew(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("with nobody there: %v", err)
	}
	now = []string{serveCA(t, twinOf(t, ca))}
	if err := id.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// One scheduler that takes connections and says nothing costs one try's time.
func TestHangingSchedulerIsPassedBy(t *testing.T) {
	hangs, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	ca := testCA(t)
	token, err := ParseToken(testToken(t, ca, RoleNode, time.Hour, 2))
	if err != nil {
		t.Fatal(err)
	}
	a := &anyOf{remoteIssuer{hangs.Addr().String(), &token}, others(serveCA(t, ca)), 100 * time.Millisecond}
	started := time.Now()
	if _, err := a.join(t.Context(), testKey(t), RoleNode); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("joined after %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.join(ctx, testKey(t), RoleNode); err == nil {
		t.Error("joined with no time left")
	}
}

func TestAddressesToTry(t *testing.T) {
	a := &anyOf{remoteIssuer: remoteIssuer{scheduler: "192.0.2.1:1"}, others: others("192.0.2.2:1", "192.0.2.1:1", "[2001:db8::1]:1", "no-port", "no-such-host.invalid:1")}
	want := []string{"192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "no-port", "no-such-host.invalid:1"}
	if got := a.addresses(t.Context()); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	many := make([]string, 2*maxTried)
	for i := range many {
		many[i] = net.JoinHostPort("192.0.2.3", string(rune('a'+i%26))+string(rune('a'+i/26)))
	}
	a.others = others(many...)
	if got := a.addresses(t.Context()); len(got) != maxTried {
		t.Errorf("%d addresses are tried, want %d at most", len(got), maxTried)
	}
}
