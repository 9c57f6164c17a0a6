package identity

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestRenewOverTheNetwork(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	for _, role := range []Role{RoleNode, RoleSeed} {
		id, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, role, time.Hour, 1), Options{})
		if err != nil {
			t.Fatal(err)
		}
		before, peer := id.current.Load().leaf, id.Peer()
		if err := id.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if id.current.Load().leaf.Equal(before) {
			t.Error("the certificate is the old one")
		}
		if id.Peer() != peer {
			t.Errorf("%s became %s", peer, id.Peer())
		}
		kept, err := loadCredential(id.dir, id.key, time.Now())
		if err != nil || !kept.leaf.Equal(id.current.Load().leaf) {
			t.Errorf("the new certificate is not on disk: %v", err)
		}
	}
}

// TestRenewForAnotherKey: a node cannot get a certificate for a key that has
// not joined.
func TestRenewForAnotherKey(t *testing.T) {
	ca := testCA(t)
	conn := dial(t, serveCA(t, ca), testIdentity(t, ca, RoleSeed).ClientCredentials(anyRole()))
	csr, err := testKey(t).request()
	if err != nil {
		t.Fatal(err)
	}
	_, err = damselflyv1.NewIdentityClient(conn).Renew(t.Context(), &damselflyv1.RenewRequest{Csr: csr})
	if status.Code(err) != codes.PermissionDenied {
		t.Fatalf("renewed for another key: %v", err)
	}
}

func TestRenewWithAnExpiredCertificate(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	yesterday := time.Now().Add(-25 * time.Hour)

	id := issuedAt(t, ca, RoleNode, yesterday)
	id.issuer = &remoteIssuer{scheduler: address}
	if err := id.Renew(t.Context()); !errors.Is(err, ErrNoToken) {
		t.Fatalf("without a token: %v", err)
	}
	token := parsedToken(t, ca, time.Hour, 1)
	id.issuer = &remoteIssuer{scheduler: address, token: &token}
	if err := id.Renew(t.Context()); err != nil {
		t.Fatalf("with a token: %v", err)
	}
	if time.Until(id.NotAfter()) < 23*time.Hour {
		t.Fatalf("came back with a certificate until %s", id.NotAfter())
	}
}

// TestRenewalRefusedByCertificate says what to look at: the scheduler's own
// answer is lost in the handshake.
func TestRenewalRefusedByCertificate(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	id := testIdentity(t, other, RoleNode)
	c := *id.current.Load()
	c.roots = append(c.roots, ca.cert)
	id.current.Store(&c)
	id.issuer = &remoteIssuer{scheduler: serveCA(t, ca)}
	if err := id.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "refused this node's certificate") {
		t.Fatalf("renewal in another cluster: %v", err)
	}
}

// flaky fails until a time, and notes when it was asked.
type flaky struct {
	issuer
	until time.Time
	asked []time.Time
}

func (f *flaky) renew(ctx context.Context, key Key, present *credential) (*credential, error) {
	f.asked = append(f.asked, time.Now())
	if time.Now().Before(f.until) {
		return nil, errors.New("the scheduler is away")
	}
	return f.issuer.renew(ctx, key, present)
}

// runFor runs the identity for so long, on the bubble's clock.
func runFor(t *testing.T, id *Identity, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := id.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRunRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testCA(t)
		id := testIdentity(t, ca, RoleNode)
		from := &flaky{issuer: id.issuer}
		id.issuer = from
		last := time.Now()
		runFor(t, id, 30*24*time.Hour)
		if n := len(from.asked); n < 54 || n > 67 {
			t.Fatalf("renewed %d times in 30 days", n)
		}
		for i, at := range from.asked {
			after := at.Sub(last)
			if after < 12*time.Hour*8/10 || after > 12*time.Hour*12/10 {
				t.Fatalf("renewal %d came %s after the one before, want about 12 h", i, after)
			}
			last = at
		}
		if id.NotAfter().Before(time.Now()) {
			t.Fatal("the certificate expired while it was renewed")
		}
	})
}

func TestNodesSpreadTheirRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testIdentity(t, testCA(t), RoleNode).current.Load()
		early, middle, late := c.renewAfter(0), c.renewAfter(0.5), c.renewAfter(1)
		if middle != 12*time.Hour || late-early < 2*time.Hour || late-middle != middle-early {
			t.Fatalf("renewals are spread from %s over %s to %s", early, middle, late)
		}
	})
}

func TestRunBearsALongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testCA(t)
		core, logs := observer.New(zapcore.DebugLevel)
		id, err := ca.Self(t.TempDir(), RoleNode, Options{Log: zap.New(core)})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		from := &flaky{issuer: id.issuer, until: start.Add(30 * time.Hour)}
		id.issuer = from
		runFor(t, id, 31*time.Hour)
		if !id.NotAfter().After(start.Add(30 * time.Hour)) {
			t.Fatal("did not come back after the outage")
		}
		if back := from.asked[len(from.asked)-1].Sub(from.until); back > lastRetry {
			t.Errorf("came back %s after the outage", back)
		}
		for i := 2; i < len(from.asked); i++ {
			pause, before := from.asked[i].Sub(from.asked[i-1]), from.asked[i-1].Sub(from.asked[i-2])
			if pause > lastRetry || pause < before/2 && before < lastRetry/2 {
				t.Fatalf("pause %d is %s after one of %s", i, pause, before)
			}
		}
		// About 18 hours of outage after the half life: no more than one line each
		// five minutes, and louder towards the end.
		if n := logs.Len(); n > 18*12+20 {
			t.Errorf("%d lines in the log", n)
		}
		if logs.FilterLevelExact(zapcore.WarnLevel).Len() == 0 || logs.FilterMessageSnippet("expires soon").Len() == 0 ||
			logs.FilterMessageSnippet("has expired").Len() == 0 {
			t.Errorf("the log does not grow louder")
		}
	})
}

func TestRunRenewsAtOnceWhenItIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testCA(t)
		id := issuedAt(t, ca, RoleNode, time.Now().Add(-20*time.Hour))
		runFor(t, id, time.Minute)
		if time.Until(id.NotAfter()) < 23*time.Hour {
			t.Fatal("a certificate past its half life was not renewed at start")
		}
	})
}

// TestRunStaysCalmWithAClockFarOff: each new certificate looks old.
func TestRunStaysCalmWithAClockFarOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testCA(t)
		id := issuedAt(t, ca, RoleNode, time.Now().Add(-15*time.Hour))
		from := &behind{flaky: flaky{issuer: id.issuer}, t: t, ca: ca}
		id.issuer = from
		runFor(t, id, 10*time.Hour)
		if n := len(from.asked); n < 30 || n > 61 {
			t.Fatalf("renewed %d times in 10 hours, want one each ten minutes", n)
		}
	})
}

// behind issues as a scheduler does whose clock is 15 hours behind.
type behind struct {
	flaky
	t  *testing.T
	ca *CA
}

func (b *behind) renew(_ context.Context, key Key, _ *credential) (*credential, error) {
	b.asked = append(b.asked, time.Now())
	return credentialAt(b.t, b.ca, key, RoleNode, time.Now().Add(-15*time.Hour)), nil
}

// TestDueByEitherClock: a wall clock that is set does not keep a certificate
// from its renewal.
func TestDueByEitherClock(t *testing.T) {
	ca := testCA(t)
	now := time.Now()
	c := credentialAt(t, ca, testKey(t), RoleNode, now)
	c.installed = now
	const after = 12 * time.Hour
	for name, at := range map[string]struct {
		now time.Time
		due bool
	}{
		"at once":                         {now, false},
		"an hour later":                   {now.Add(time.Hour), false},
		"both clocks past":                {now.Add(after + time.Minute), true},
		"suspended: the wall alone":       {now.Round(0).Add(after + time.Minute), true},
		"wall set back, read without it":  {now.Round(0).Add(-time.Hour), false},
		"wall set forward by a leap hour": {now.Round(0).Add(time.Hour), false},
	} {
		if got := c.due(after, at.now); got != at.due {
			t.Errorf("%s: due is %v", name, got)
		}
	}
	// The wall clock was far ahead when the certificate was issued, and set right
	// later: by the wall it is not due for days.
	c = credentialAt(t, ca, testKey(t), RoleNode, now.Add(72*time.Hour))
	c.installed = now
	if !c.due(after, now.Add(after+time.Minute)) {
		t.Error("the monotonic clock is not heeded")
	}
}

func TestRunStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := testIdentity(t, testCA(t), RoleNode)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- id.Run(ctx) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Fatalf("Run ended after %s with %v", time.Since(start), err)
		}
	})
}
