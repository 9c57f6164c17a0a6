package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// Strangers that hold all the connections they are given, say nothing, and come back
// when one is closed keep no schedulers apart.
func TestStrangersDoNotKeepSchedulersApart(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	first := make(chan struct{}, 2*maxStreams)
	for range 2 * maxStreams {
		wg.Go(func() {
			for ctx.Err() == nil {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", a.GossipAddress())
				if err != nil {
					return
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				_, _ = io.ReadFull(conn, make([]byte, challengeBytes))
				select {
				case first <- struct{}{}:
				default:
				}
				_, _ = io.Copy(io.Discard, conn) // until it is closed there
				stop()
				conn.Close()
			}
		})
	}
	for range 2 * maxStreams {
		<-first
	}
	b := w.start(a.GossipAddress())
	w.agree(10*time.Second, a, b)
	w.within(10*time.Second, "strangers are turned away", func() bool { return counted(t, a.dropped, "streams") >= 2*maxStreams })
}

// inlet is a transport to which a test gives connections.
type inlet struct {
	memberlist.NodeAwareTransport
	streams chan net.Conn
}

func (i *inlet) StreamCh() <-chan net.Conn { return i.streams }
func (i *inlet) Shutdown() error           { return nil }

// connect opens a connection to a transport, and returns it once it was challenged.
func (i *inlet) connect(t *testing.T) (conn net.Conn, challenge []byte) {
	t.Helper()
	ours, theirs := net.Pipe()
	i.streams <- theirs
	challenge = make([]byte, challengeBytes)
	if _, err := io.ReadFull(ours, challenge); err != nil {
		t.Fatal(err)
	}
	return ours, challenge
}

// Of more strangers than have room the oldest goes, and who shows the key is served
// though there are as many as there can be. An answer from before is worth nothing.
func TestOldestStrangerGivesWay(t *testing.T) {
	in := &inlet{streams: make(chan net.Conn)}
	key := make([]byte, 32)
	refused := make(chan string, 2*maxStrangers)
	b := newBounded(t.Context(), in, key, nil, func(reason string) { refused <- reason })
	shut := sync.OnceValue(b.Shutdown)
	defer func() { _ = shut() }()
	var strangers []net.Conn
	for range maxStrangers {
		conn, _ := in.connect(t)
		strangers = append(strangers, conn)
	}
	scheduler, challenge := in.connect(t)
	if _, err := strangers[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest stranger: %v", err)
	}
	<-refused
	if _, err := scheduler.Write(proofOf(key, challenge)); err != nil {
		t.Fatal(err)
	}
	served := <-b.StreamCh()
	again, _ := in.connect(t)
	if _, err := again.Write(proofOf(key, challenge)); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one that plays an answer again: %v", err)
	}
	<-refused
	if err := served.Close(); err != nil || len(b.places) != 0 {
		t.Errorf("the place is not given back: %v", err)
	}
	if err := shut(); err != nil {
		t.Error(err)
	}
	for _, conn := range append(strangers[1:], scheduler) {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("a connection outlives the transport: %v", err)
		}
	}
}
