package identity

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Callers without a certificate that open what they may, and say nothing, keep nobody
// from joining.
func TestSilentStrangersKeepNobodyFromJoining(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	for range strangersOfOne / 4 {
		stranger := dial(t, address, anonymous())
		for range 8 {
			if _, err := stranger.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, damselflyv1.Identity_Join_FullMethodName); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, RoleNode, time.Hour, 1), Options{}); err != nil {
		t.Errorf("a node with a good token: %v", err)
	}
	if _, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, testToken(t, ca, RoleScheduler, time.Hour, 1)); err != nil {
		t.Errorf("a scheduler with a good token: %v", err)
	}
}

// What a caller without a certificate can have in memory is small, whatever it sends.
func TestStrangerSaysLittle(t *testing.T) {
	ca := testCA(t)
	client := damselflyv1.NewIdentityClient(dial(t, serveCA(t, ca), anonymous()))
	_, err := client.Join(t.Context(), &damselflyv1.JoinRequest{Csr: make([]byte, 2*strangerBytes)})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%d bytes on one connection: %v", 2*strangerBytes, err)
	}
	_, err = client.Join(t.Context(), &damselflyv1.JoinRequest{Csr: make([]byte, 2*maxCSR)})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("what is read and is no request: %v", err)
	}
}

// One address has few connections without a certificate; others, and those with one,
// are not kept out by it.
func TestStrangersOfOneAddressAreFew(t *testing.T) {
	all := &connections{}
	open := func(from, peer string) (*serverConn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		c := &serverConn{Conn: ours, peer: peer, from: prefixOf(netip.MustParseAddr(from))}
		return c, all.add(c, time.Hour)
	}
	var held []*serverConn
	take := func(from, peer string) {
		t.Helper()
		c, err := open(from, peer)
		if err != nil {
			t.Fatalf("%s %q: %v", from, peer, err)
		}
		held = append(held, c)
	}
	for range strangersOfOne {
		take("2001:db8::1", "")
	}
	if _, err := open("2001:db8::2", ""); !errors.Is(err, errTooMany) {
		t.Fatalf("one more than %d: %v", strangersOfOne, err)
	}
	take("2001:db8:0:1::1", "")
	take("2001:db8::1", "somebody")
	for range 2 { // gRPC and the timer may both close one
		held[0].Close()
	}
	take("2001:db8::1", "")
	if _, err := open("2001:db8::1", ""); !errors.Is(err, errTooMany) {
		t.Fatalf("a connection closed twice made room for two: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
	if len(all.open) != 0 || len(all.strangers) != 0 {
		t.Errorf("%d connections and %d addresses are remembered after all were closed", len(all.open), len(all.strangers))
	}
}
