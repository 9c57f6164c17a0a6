package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// fiction is a blob that the rogue claims to hold.
type fiction struct {
	subject
	sealed bool
	links  []byte // from link 1 on; none unless the chain is forged
}

// invented answers with bytes that the rogue made up, once the claim is made.
type invented struct {
	blobs map[blob.Digest]*fiction
	begin *begin
}

// invent makes up what o claims; a forged chain costs hashing every byte once.
func invent(o options, b *begin) (*invented, error) {
	in := &invented{blobs: map[blob.Digest]*fiction{}, begin: b}
	for _, s := range o.subjects {
		f := &fiction{subject: s, sealed: o.claim == claimSealed}
		if o.lie == forgedChain {
			if err := f.forge(); err != nil {
				return nil, err
			}
		}
		in.blobs[s.digest] = f
	}
	return in, nil
}

// forge makes links that the invented pieces fit. The last does not lead to the
// digest.
func (f *fiction) forge() error {
	link := f.digest.FirstLink()
	for i := range f.layout.Pieces() - 1 {
		var err error
		if link, err = blob.Advance(f.digest, f.layout, i, link, f.piece(i)); err != nil {
			return fmt.Errorf("forge link %d of %s: %w", i+1, f.digest, err)
		}
		f.links = append(f.links, link...)
	}
	return nil
}

// piece is what is sent for piece i, each time the same.
func (f *fiction) piece(i int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i)+1)
	b := make([]byte, f.layout.Length(i))
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

func (in *invented) find(digest string, size uint64) (*fiction, error) {
	d, err := blob.ParseDigest(digest)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	f := in.blobs[d]
	if f == nil || uint64(f.layout.Size()) != size || !in.begin.begun() {
		return nil, status.Error(codes.NotFound, "this node does not hold the blob")
	}
	return f, nil
}

// read implements source.
func (in *invented) read(_ context.Context, req *damselflyv1.ReadRequest, send func(*damselflyv1.Chunk) error) error {
	const part = 64 << 10
	f, err := in.find(req.GetDigest(), req.GetSize())
	if err != nil {
		return err
	}
	runs, left := req.GetLacking(), req.GetMost()
	if run := req.GetRun(); run != nil {
		runs, left = []*damselflyv1.Run{run}, run.GetCount()
	}
	for _, r := range runs {
		run := blob.Run{First: int(r.GetFirst()), Count: int(min(r.GetCount(), left))}
		left -= uint32(run.Count)
		if err := f.layout.Check(run); err != nil {
			continue
		}
		for i := run.First; i < run.End(); i++ {
			piece := f.piece(i)
			for off := 0; off < len(piece); off += part {
				c := &damselflyv1.Chunk{Piece: uint32(i), Offset: uint32(off), Data: piece[off:min(off+part, len(piece))]}
				if err := send(c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// holdings implements source.
func (in *invented) holdings(_ context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	f, err := in.find(req.GetDigest(), req.GetSize())
	if err != nil {
		return &damselflyv1.HoldingsResponse{}, nil //nolint:nilerr // a node that knows nothing of a blob says so
	}
	all := f.layout.All()
	return &damselflyv1.HoldingsResponse{
		Runs: []*damselflyv1.Run{{First: uint32(all.First), Count: uint32(all.Count)}}, Sealed: f.sealed, FirstLink: 1, Links: f.links,
	}, nil
}

// whole implements source.
func (*invented) whole(context.Context, string, uint64) bool { return false }
