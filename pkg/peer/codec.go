package peer

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that everything but chunks uses
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of damselfly.v1.Chunk.
const (
	fieldPiece  protowire.Number = 1
	fieldOffset protowire.Number = 2
	fieldData   protowire.Number = 3
)

// headerLimit bounds the encoded bytes of a Chunk that are not its data.
const headerLimit = 64

var errChunk = errors.New("malformed chunk")

// outgoing is a damselfly.v1.Chunk whose data lie in a pooled buffer. The codec
// takes the buffer over; gRPC frees it once it is written.
type outgoing struct {
	piece, offset uint32
	data          mem.Buffer
}

// incoming receives one damselfly.v1.Chunk after the other. Their data stay in the
// buffers that they came in, of which it holds a reference each until free.
type incoming struct {
	chunk
	buffers mem.BufferSlice // those of the last chunk are behind those of the ones before
	first   int             // where those of the last chunk begin
	skip    int             // bytes of that one that are not data
}

// chunk is a damselfly.v1.Chunk without its data, of which there are length bytes, at
// least one.
type chunk struct {
	piece, offset uint32
	length        int
}

// free lets go of all data.
func (in *incoming) free() {
	in.buffers.Free()
	in.buffers = nil
}

// codec writes and reads chunks without building a protobuf message, byte for
// byte as protobuf would (proto.dev, Encoding), and leaves every other message
// to gRPC's own codec. It is safe for concurrent use.
type codec struct {
	proto encoding.CodecV2
	pool  mem.BufferPool
}

// newCodec returns a codec that takes buffers of its own from pool.
func newCodec(pool mem.BufferPool) encoding.CodecV2 {
	return codec{proto: encoding.GetCodecV2("proto"), pool: pool}
}

func (codec) Name() string { return "proto" }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	out, ok := v.(*outgoing)
	if !ok {
		return c.proto.Marshal(v)
	}
	head := make([]byte, 0, headerLimit)
	head = protowire.AppendTag(head, fieldPiece, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(out.piece))
	head = protowire.AppendTag(head, fieldOffset, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(out.offset))
	head = protowire.AppendTag(head, fieldData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(out.data.Len()))
	return mem.BufferSlice{mem.SliceBuffer(head), out.data}, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	total := data.Len()
	var head [headerLimit]byte
	start := head[:0]
	for _, b := range data {
		start = append(start, b.ReadOnlyData()[:min(b.Len(), headerLimit-len(start))]...)
	}
	got, err := decodeChunk(start, total)
	if err != nil {
		return err
	}
	in.chunk, in.first, in.skip = got, len(in.buffers), total-got.length
	for in.skip >= data[0].Len() {
		in.skip -= data[0].Len()
		data = data[1:]
	}
	if len(data) > most(got.length) {
		in.buffers = append(in.buffers, mem.NewBuffer(together(data, c.pool), c.pool))
		return nil
	}
	data.Ref()
	in.buffers = append(in.buffers, data...)
	return nil
}

// most is in how many buffers n bytes are kept. A sender that puts them into more has
// them copied: what a small buffer takes beside its bytes adds up.
func most(n int) int { return 2 + n/(8<<10) }

// together copies data into one buffer of pool.
func together(data mem.BufferSlice, pool mem.BufferPool) *[]byte {
	buf := pool.Get(data.Len())
	data.CopyTo(*buf)
	return buf
}

// decodeChunk reads an encoded Chunk of total bytes, of which head is the start, up to
// its data. The data come last and once, as Marshal writes them; whatever else arrives
// is refused.
func decodeChunk(head []byte, total int) (in chunk, err error) {
	left := head
	for len(left) > 0 {
		num, typ, n := protowire.ConsumeTag(left)
		if n < 0 {
			return in, fmt.Errorf("%w: %w", errChunk, protowire.ParseError(n))
		}
		value, m := protowire.ConsumeVarint(left[n:])
		if m < 0 {
			return in, fmt.Errorf("%w: %w", errChunk, protowire.ParseError(m))
		}
		left = left[n+m:]
		switch {
		case num == fieldPiece && typ == protowire.VarintType && value <= 1<<32-1:
			in.piece = uint32(value)
		case num == fieldOffset && typ == protowire.VarintType && value <= 1<<32-1:
			in.offset = uint32(value)
		case num == fieldData && typ == protowire.BytesType:
			has := total - (len(head) - len(left))
			if value != uint64(has) || value == 0 {
				return in, fmt.Errorf("%w: data of %d bytes in a message with %d left", errChunk, value, has)
			}
			in.length = has
			return in, nil
		default:
			return in, fmt.Errorf("%w: field %d of type %d with value %d", errChunk, num, typ, value)
		}
	}
	return in, fmt.Errorf("%w: no data", errChunk)
}
