package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// runBytes is how long a lease's run is, where one piece is not longer: what the
// scheduler hands out by default.
const runBytes = 1 << 20

// exchange is the reading end of the piece exchange, as a task works: a real client,
// as many runs at a time as a node has download slots, each piece verified and
// written by a real store.
type exchange struct {
	holder peer.Holder
	digest blob.Digest
	layout blob.Layout
	links  []byte
	peers  *peer.Client
	store  *store.Store
	blob   *store.Blob // begun
}

// newExchange opens a store below dir and gets the links of the far end's blob. The
// caller closes it.
func newExchange(ctx context.Context, dir string, id *identity.Identity, h hello) (*exchange, error) {
	l, err := blob.NewLayout(h.Size)
	if err != nil {
		return nil, err
	}
	s, err := store.Open(store.Config{Dir: filepath.Join(dir, "near")}, zap.NewNop())
	if err != nil {
		return nil, err
	}
	e := &exchange{
		holder: peer.Holder{ID: h.ID, Address: h.Peer}, digest: h.Digest, layout: l,
		peers: peer.NewClient(id), store: s,
	}
	for at := 0; at < l.Pieces(); at = len(e.links) / h.Digest.LinkSize() {
		has, err := e.peers.Holdings(ctx, e.holder, h.Digest, l, at, "")
		if err == nil && (has.FirstLink != at || len(has.Links) == 0) {
			err = fmt.Errorf("the other end gave no link %d of its blob", at)
		}
		if err != nil {
			return nil, errors.Join(err, e.close())
		}
		e.links = append(e.links, has.Links...)
	}
	return e, nil
}

func (e *exchange) close() error { return errors.Join(e.peers.Close(), e.store.Close()) }

// begin makes an empty blob with all its links, as a task does once for each blob.
func (e *exchange) begin() (err error) {
	if e.blob, err = e.store.Create(e.digest, e.layout.Size()); err != nil {
		return err
	}
	return e.blob.AddLinks(0, e.links)
}

// pull reads the pieces of one run into the blob, in leases.
func (e *exchange) pull(ctx context.Context, all blob.Run) error {
	leases := make(chan blob.Run, all.Count)
	step := max(1, int(runBytes/e.layout.PieceLength()))
	for i := all.First; i < all.End(); i += step {
		leases <- blob.Run{First: i, Count: min(step, all.End()-i)}
	}
	close(leases)
	begin := func(_ peer.Sender, i int) peer.Taker { return e.blob.Arrive(i) }
	g, ctx := errgroup.WithContext(ctx)
	for range node.DefaultConfig().Peer.DownloadSlots {
		g.Go(func() error {
			for run := range leases {
				if err := e.peers.Read(ctx, e.holder, e.digest, e.layout, run, begin, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(e.blob.Missing(all)) > 0 {
		return errors.New("pieces are missing that were read without an error")
	}
	return nil
}

// forget drops the blob.
func (e *exchange) forget() error {
	err := e.store.Remove(e.digest)
	e.blob.Release()
	return err
}
