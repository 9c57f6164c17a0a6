package peer_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// A holder that may choose sends every piece once before any twice, of those that it
// has, and no other.
func TestReadSomeSendsEachOnce(t *testing.T) {
	h := newHolder(t, 2)
	const held = 5
	h.keep(t, held)
	c := h.client(t, identity.RoleNode)
	all := blob.NewBitmap(h.layout.Pieces())
	all.SetRun(h.layout.All())
	some := func(lacking *blob.Bitmap, most int) (got []int, err error) {
		err = c.ReadSome(t.Context(), h.Holder, h.digest, h.layout, lacking, most, whole(func(from peer.Sender, i int, piece []byte) error {
			if !bytes.Equal(piece, h.piece(i)) || from.Role != identity.RoleNode {
				t.Errorf("piece %d from a %s is another", i, from)
			}
			got = append(got, i)
			return nil
		}))
		return got, err
	}
	for round := range 3 {
		var sent []int
		for range held {
			got, err := some(all, 1)
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, got...)
		}
		if slices.Sort(sent); !slices.Equal(sent, []int{0, 1, 2, 3, 4}) {
			t.Fatalf("round %d sent %v", round, sent)
		}
	}
	two := blob.NewBitmap(h.layout.Pieces())
	two.Set(3)
	two.Set(6)
	if got, err := some(two, 4); err != nil || !slices.Equal(got, []int{3}) {
		t.Errorf("of pieces 3 and 6 came %v, %v", got, err)
	}
	two.Clear(3)
	if got, err := some(two, 4); !errors.Is(err, peer.ErrMissing) || len(got) > 0 {
		t.Errorf("of piece 6, which is not there, came %v, %v", got, err)
	}
}

// unasked sends a piece that nobody asked for.
type unasked struct {
	damselflyv1.UnimplementedPeerServer
	h *holder
}

func (u unasked) Read(_ *damselflyv1.ReadRequest, stream grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	for _, i := range []int{2, 2} {
		if err := stream.Send(&damselflyv1.Chunk{Piece: uint32(i), Data: u.h.piece(i)}); err != nil {
			return err
		}
	}
	return nil
}

// A holder that sends a piece twice, or one that was not asked for, is malformed.
func TestReadSomeTakesOnlyWhatItAskedFor(t *testing.T) {
	h := newHolder(t, 2)
	liar := serve(t, h, unasked{h: h})
	c := h.client(t, identity.RoleNode)
	lacking := blob.NewBitmap(h.layout.Pieces())
	lacking.Set(1)
	var got []int
	begin := whole(func(_ peer.Sender, i int, _ []byte) error { got = append(got, i); return nil })
	if err := c.ReadSome(t.Context(), liar, h.digest, h.layout, lacking, 2, begin); !errors.Is(err, peer.ErrMalformed) || len(got) > 0 {
		t.Errorf("piece 2 for piece 1: %v, %v", got, err)
	}
	lacking.Set(2)
	if err := c.ReadSome(t.Context(), liar, h.digest, h.layout, lacking, 2, begin); !errors.Is(err, peer.ErrMalformed) || len(got) != 1 {
		t.Errorf("piece 2 twice: %v, %v", got, err)
	}
}

// Who asks is met, and told of the others and of links that it does not know.
func TestHoldingsTellsOfOthers(t *testing.T) {
	h := newHolder(t, 2)
	c, id := h.clientAs(t, identity.RoleNode)
	h.tasks.company = peer.Company{Wanting: true, Others: []peer.Holder{{ID: id, Address: "me:1"}, {ID: "other", Address: "other:1"}}}
	ask := func(firstLink int) peer.Holdings {
		t.Helper()
		got, err := c.Holdings(t.Context(), h.Holder, h.digest, h.layout, firstLink, "me:1")
		if err != nil {
			t.Fatal(err)
		}
		if !got.Wanting || got.Reading || !slices.Equal(got.Others, []peer.Holder{{ID: "other", Address: "other:1"}}) {
			t.Errorf("told %+v", got.Company)
		}
		return got
	}
	if got := ask(0); got.Have.Count() != 0 || got.Sealed {
		t.Errorf("of a blob that it has never seen it has %v", got)
	}
	h.keep(t, 3)
	if got := ask(2); got.Have.Count() != 3 || got.FirstLink != 2 || len(got.Links) != 2*32 {
		t.Errorf("it has %d pieces and %d bytes of links from %d", got.Have.Count(), len(got.Links), got.FirstLink)
	}
	if _, err := c.Holdings(t.Context(), h.Holder, h.digest, h.layout, 0, ""); err != nil {
		t.Fatal(err)
	}
	if met := h.tasks.met; !slices.Equal(met, []peer.Holder{{ID: id, Address: "me:1"}, {ID: id, Address: "me:1"}}) {
		t.Errorf("met %v", met)
	}
}

// wrongHoldings answers Holdings with what no honest node says.
type wrongHoldings struct {
	damselflyv1.UnimplementedPeerServer
	answer *damselflyv1.HoldingsResponse
}

func (w wrongHoldings) Holdings(context.Context, *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	return w.answer, nil
}

func TestMalformedHoldings(t *testing.T) {
	h := newHolder(t, 2)
	c := h.client(t, identity.RoleNode)
	for name, answer := range map[string]*damselflyv1.HoldingsResponse{
		"a run beyond the blob": {Runs: []*damselflyv1.Run{{First: 5, Count: 7}}},
		"another with no name":  {Others: []*damselflyv1.Holder{{Address: "a:1"}}},
		"another with no port":  {Others: []*damselflyv1.Holder{{Node: "a", Address: "a"}}},
		"too many others":       {Others: slices.Repeat([]*damselflyv1.Holder{{Node: "a", Address: "a:1"}}, 33)},
	} {
		liar := serve(t, h, wrongHoldings{answer: answer})
		if _, err := c.Holdings(t.Context(), liar, h.digest, h.layout, 0, ""); !errors.Is(err, peer.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
