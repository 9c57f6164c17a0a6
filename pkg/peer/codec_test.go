package peer

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func collect(dst *damselflyv1.Chunk) *incoming {
	return &incoming{place: func(piece, offset uint32, n int) ([]byte, error) {
		dst.Piece, dst.Offset, dst.Data = piece, offset, make([]byte, n)
		return dst.Data, nil
	}}
}

// What the codec writes is what any protobuf reader expects.
func TestCodecIsProtobufOnTheWire(t *testing.T) {
	for _, n := range []int{1, 127, 128, 4096, chunkLength} {
		data := bytes.Repeat([]byte{7, 9}, n)[:n]
		raw, err := newCodec().Marshal(&outgoing{piece: 1 << 20, offset: 1<<32 - 1, data: mem.SliceBuffer(data)})
		if err != nil {
			t.Fatal(err)
		}
		var got damselflyv1.Chunk
		if err := proto.Unmarshal(raw.Materialize(), &got); err != nil {
			t.Fatal(err)
		}
		if got.GetPiece() != 1<<20 || got.GetOffset() != 1<<32-1 || !bytes.Equal(got.GetData(), data) {
			t.Fatalf("%d bytes: protobuf reads piece %d offset %d and %d bytes", n, got.GetPiece(), got.GetOffset(), len(got.GetData()))
		}
	}
}

func TestCodecReadsProtobufInAnySplit(t *testing.T) {
	want := &damselflyv1.Chunk{Piece: 300, Offset: 70000, Data: bytes.Repeat([]byte("damselfly"), 50)}
	raw, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range raw {
		var got damselflyv1.Chunk
		split := mem.BufferSlice{mem.SliceBuffer(raw[:cut]), mem.SliceBuffer(raw[cut:])}
		if err := newCodec().Unmarshal(split, collect(&got)); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if !proto.Equal(&got, want) {
			t.Fatalf("cut at %d: read something else", cut)
		}
	}
}

func TestCodecRefusesWhatNoHolderSends(t *testing.T) {
	for name, raw := range map[string][]byte{
		"nothing":           {},
		"no data":           {0x08, 0x01},
		"empty data":        {0x08, 0x01, 0x1a, 0x00},
		"data cut short":    {0x1a, 0x05, 1, 2},
		"bytes after data":  {0x1a, 0x01, 1, 2},
		"huge data":         {0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"piece over 32 bit": {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x1a, 0x01, 1},
		"unknown field":     {0x22, 0x01, 1},
		"endless varint":    bytes.Repeat([]byte{0xff}, 80),
	} {
		t.Run(name, func(t *testing.T) {
			var got damselflyv1.Chunk
			if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, collect(&got)); !errors.Is(err, errChunk) {
				t.Fatalf("got %v, want it refused as malformed", err)
			}
		})
	}
}

// Whatever the bytes, the decoder neither panics nor places more than there is,
// and what it accepts protobuf reads the same.
func FuzzDecodeChunk(f *testing.F) {
	good, _ := proto.Marshal(&damselflyv1.Chunk{Piece: 3, Offset: 9, Data: []byte("abc")})
	f.Add(good)
	f.Add([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var got damselflyv1.Chunk
		in := collect(&got)
		place := in.place
		in.place = func(piece, offset uint32, n int) ([]byte, error) {
			if n > len(raw) {
				t.Fatalf("placing %d bytes of a message of %d", n, len(raw))
			}
			return place(piece, offset, n)
		}
		if newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, in) != nil {
			return
		}
		var want damselflyv1.Chunk
		if err := proto.Unmarshal(raw, &want); err != nil || !proto.Equal(&got, &want) {
			t.Fatalf("accepted what protobuf reads as %v (%v)", &want, err)
		}
	})
}
