package identity

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestFailuresAreLimitedByAddress(t *testing.T) {
	l := newFailureLimiter()
	now := time.Unix(1_000_000, 0)
	bad, good := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range failedJoinBurst {
		if !l.allowed(bad, now) {
			t.Fatalf("stopped after %d failures", i)
		}
		l.failed(bad, now)
	}
	if l.allowed(bad, now) {
		t.Fatal("still allowed after the burst")
	}
	if l.allowed(netip.MustParseAddr("::ffff:192.0.2.1"), now) {
		t.Fatal("the same address written as IPv6 goes around the limit")
	}
	if !l.allowed(good, now) {
		t.Fatal("another address pays for it")
	}
	if later := now.Add(failedJoinEvery); !l.allowed(bad, later) {
		t.Fatal("no try comes back with time")
	}
}

func TestOneIPv6NetworkIsOneParty(t *testing.T) {
	l := newFailureLimiter()
	now := time.Unix(1_000_000, 0)
	address := netip.MustParseAddr("2001:db8::1")
	for range failedJoinBurst {
		l.failed(address, now)
		address = address.Next()
	}
	if l.allowed(netip.MustParseAddr("2001:db8::ffff%eth0"), now) {
		t.Fatal("a neighbour in the same /64 is allowed")
	}
	if !l.allowed(netip.MustParseAddr("2001:db8:0:1::1"), now) {
		t.Fatal("another /64 is not")
	}
}

func TestLimiterMemoryIsBounded(t *testing.T) {
	l := newFailureLimiter()
	now := time.Unix(1_000_000, 0)
	persistent := netip.MustParseAddr("192.0.2.1")
	for range failedJoinBurst {
		l.failed(persistent, now)
	}
	address := netip.MustParseAddr("10.0.0.0")
	for i := range 3 * maxAddresses {
		l.failed(address, now)
		address = address.Next()
		if i%1000 == 0 {
			l.failed(persistent, now)
		}
	}
	if len(l.byAddress) > maxAddresses || l.order.Len() > maxAddresses {
		t.Fatalf("remembers %d addresses, limit is %d", len(l.byAddress), maxAddresses)
	}
	if l.allowed(persistent, now) {
		t.Fatal("one that keeps failing was forgotten among many")
	}
}

func TestGuessingIsStopped(t *testing.T) {
	ca := testCA(t)
	client := damselflyv1.NewIdentityClient(dial(t, serveCA(t, ca), anonymous()))
	csr, err := testKey(t).request()
	if err != nil {
		t.Fatal(err)
	}
	good := parsedToken(t, ca, time.Hour, 1)
	guess := &damselflyv1.JoinRequest{TokenId: good.ID, Secret: strings.Repeat("A", 43), Csr: csr}
	for range failedJoinBurst {
		if _, err := client.Join(t.Context(), guess); status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	guess.Secret = good.secret
	if _, err := client.Join(t.Context(), guess); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("after %d wrong guesses: %v", failedJoinBurst, err)
	}
}
