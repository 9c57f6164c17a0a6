package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// hello is what the far end says once it serves.
type hello struct {
	Plain  string      `json:"plain"` // address: a request is answered by sendfile
	TLS    string      `json:"tls"`   // and here from memory
	Peer   string      `json:"peer"`
	Files  string      `json:"files"` // a plain file server of the bench's directory
	ID     string      `json:"id"`    // of its certificate
	Digest blob.Digest `json:"digest"`
	Size   int64       `json:"size"`
}

// newFar is the far end: the process that sends.
func newFar() *cobra.Command {
	var (
		dir, profile string
		size         int64
	)
	c := &cobra.Command{
		Use: "far", Short: "The other end, which bench starts itself", Args: cobra.NoArgs, Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			stop, err := process.ProfileSelf(profile)
			if err != nil {
				return err
			}
			err = serveFar(c.Context(), dir, size, c.InOrStdin(), c.OutOrStdout())
			if c.Context().Err() != nil {
				err = nil // the near end says why it ends
			}
			return errors.Join(err, stop())
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of the bench")
	c.Flags().StringVar(&profile, "profile", "", "file for a CPU profile")
	c.Flags().TextVar((*config.Bytes)(&size), "size", config.Bytes(0), "size of the blob")
	return c
}

// serveFar fills a store with one blob, serves it every way that is measured, and
// answers each line of in with what it has allocated, until in ends.
func serveFar(ctx context.Context, dir string, size int64, in io.Reader, out io.Writer) (err error) {
	s, err := store.Open(store.Config{Dir: filepath.Join(dir, "far")}, zap.NewNop())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b, err := fill(ctx, s, size)
	if err != nil {
		return err
	}
	defer b.Release()
	file, err := b.File()
	if err != nil {
		return err
	}
	defer file.Close()
	id, err := newIdentity(dir, "far-identity")
	if err != nil {
		return err
	}
	h := hello{ID: id.ID(), Digest: b.Digest(), Size: b.Size()}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, face := range []struct {
		address *string
		serve   func(net.Listener) error
	}{
		{&h.Plain, func(l net.Listener) error { return sendFiles(l, file) }},
		{&h.TLS, func(l net.Listener) error { return sendSealed(l, id.ServerTLS()) }},
		{&h.Files, func(l net.Listener) error { return http.Serve(l, http.FileServer(http.Dir(dir))) }},
		{&h.Peer, func(l net.Listener) error { return servePeers(ctx, l, id, s) }},
	} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		*face.address = l.Addr().String()
		context.AfterFunc(ctx, func() { _ = l.Close() })
		g.Go(func() error {
			if err := face.serve(l); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		defer cancel() // the near end is gone, or done
		return answer(h, in, out)
	})
	return g.Wait()
}

func answer(h hello, in io.Reader, out io.Writer) error {
	asked, answers := json.NewDecoder(in), json.NewEncoder(out)
	if err := answers.Encode(h); err != nil {
		return err
	}
	for {
		var question struct{}
		err := asked.Decode(&question)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = answers.Encode(ownHeap())
		}
		if err != nil {
			return err
		}
	}
}

// servePeers is the piece exchange as a node runs it, with the slots of a node.
func servePeers(ctx context.Context, l net.Listener, id *identity.Identity, s *store.Store) error {
	srv := node.PeerServer(id, zap.NewNop())
	damselflyv1.RegisterPeerServer(srv, peer.NewServer(s, nobody{}, 3*node.DefaultConfig().Peer.UploadSlots, nil))
	defer context.AfterFunc(ctx, srv.Stop)()
	return srv.Serve(l)
}

// nobody is the tasks of a node without clients.
type nobody struct{}

// Credential implements peer.Tasks.
func (nobody) Credential(blob.Digest, *damselflyv1.Origin) (http.Header, bool) { return nil, false }

// Meet implements peer.Tasks.
func (nobody) Meet(blob.Digest, peer.Holder) {}

// Company implements peer.Tasks.
func (nobody) Company(blob.Digest) peer.Company { return peer.Company{} }
func (nobody) Given(blob.Digest, int)           {}

// newIdentity gives this process a key and a certificate of the bench's cluster.
func newIdentity(dir, name string) (*identity.Identity, error) {
	ca, err := identity.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		return nil, err
	}
	own := filepath.Join(dir, name)
	if err := os.MkdirAll(own, 0o700); err != nil {
		return nil, err
	}
	id, err := ca.Self(own, identity.RoleNode, identity.Options{})
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	return id, nil
}
