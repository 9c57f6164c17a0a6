package peer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// decode reads a chunk as a client does.
func decode(split mem.BufferSlice) (*damselflyv1.Chunk, error) {
	var in incoming
	defer in.free()
	if err := newCodec(newPool()).Unmarshal(split, &in); err != nil {
		return nil, err
	}
	got := &damselflyv1.Chunk{Piece: in.piece, Offset: in.offset}
	for _, b := range in.buffers[in.first:] {
		got.Data = append(got.Data, b.ReadOnlyData()[in.skip:]...)
		in.skip = 0
	}
	if len(got.Data) != in.length {
		return nil, fmt.Errorf("%d bytes of %d", len(got.Data), in.length)
	}
	return got, nil
}

// What the codec writes is what any protobuf reader expects.
func TestCodecIsProtobufOnTheWire(t *testing.T) {
	for _, n := range []int{1, 127, 128, 4096, chunkLength} {
		data := bytes.Repeat([]byte{7, 9}, n)[:n]
		raw, err := newCodec(newPool()).Marshal(&outgoing{piece: 1 << 20, offset: 1<<32 - 1, data: mem.SliceBuffer(data)})
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
		got, err := decode(mem.BufferSlice{mem.SliceBuffer(raw[:cut]), mem.SliceBuffer(raw[cut:])})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if !proto.Equal(got, want) {
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
			if _, err := decode(mem.BufferSlice{mem.SliceBuffer(raw)}); !errors.Is(err, errChunk) {
				t.Fatalf("got %v, want it refused as malformed", err)
			}
		})
	}
}

// lent is a pool that knows what it has given out.
type lent struct {
	mem.BufferPool
	out map[*[]byte]bool
}

func (l *lent) Get(n int) *[]byte {
	b := l.BufferPool.Get(n)
	l.out[b] = true
	return b
}

func (l *lent) Put(b *[]byte) {
	delete(l.out, b)
	l.BufferPool.Put(b)
}

// TestCodecKeepsOneChunkAfterTheOther: the data of all stay as they came, in the buffers
// that they came in, until they are let go of together.
func TestCodecKeepsOneChunkAfterTheOther(t *testing.T) {
	counted := &lent{BufferPool: newPool(), out: map[*[]byte]bool{}}
	c := newCodec(counted)
	var (
		in    incoming
		want  []byte
		parts [][]byte
	)
	for i := range 3 {
		some := bytes.Repeat([]byte{byte(i + 1)}, 40000)
		want = append(want, some...)
		raw, err := proto.Marshal(&damselflyv1.Chunk{Piece: 1, Offset: uint32(i * 40000), Data: some})
		if err != nil {
			t.Fatal(err)
		}
		size := 16 << 10
		if i == 2 {
			size = 1000 // a sender that cuts small
		}
		var data mem.BufferSlice
		for part := range slices.Chunk(raw, size) {
			data = append(data, mem.Copy(part, counted))
		}
		if err := c.Unmarshal(data, &in); err != nil {
			t.Fatal(err)
		}
		data.Free()
		if n := len(in.buffers) - in.first; i < 2 && n != 3 || i == 2 && n != 1 {
			t.Errorf("chunk %d is kept in %d buffers", i, n)
		}
		for _, b := range in.buffers[in.first:] {
			parts = append(parts, b.ReadOnlyData()[in.skip:])
			in.skip = 0
		}
	}
	if !bytes.Equal(slices.Concat(parts...), want) {
		t.Error("the data of the chunks before are not what they were")
	}
	if len(counted.out) == 0 {
		t.Error("no buffer is kept")
	}
	in.free()
	if len(counted.out) > 0 {
		t.Errorf("%d buffers are not given back", len(counted.out))
	}
}

// Whatever the bytes, the decoder neither panics nor places more than there is,
// and what it accepts protobuf reads the same.
func FuzzDecodeChunk(f *testing.F) {
	good, _ := proto.Marshal(&damselflyv1.Chunk{Piece: 3, Offset: 9, Data: []byte("abc")})
	f.Add(good)
	f.Add([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, raw []byte) {
		half := len(raw) / 2
		got, err := decode(mem.BufferSlice{mem.SliceBuffer(raw[:half]), mem.SliceBuffer(raw[half:])})
		if err != nil {
			if !errors.Is(err, errChunk) {
				t.Fatal(err)
			}
			return
		}
		var want damselflyv1.Chunk
		if err := proto.Unmarshal(raw, &want); err != nil || !proto.Equal(got, &want) {
			t.Fatalf("accepted what protobuf reads as %v (%v)", &want, err)
		}
	})
}
