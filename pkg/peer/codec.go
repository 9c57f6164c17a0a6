package peer

import (
	"errors"
	"fmt"
	"io"

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

// incoming receives a damselfly.v1.Chunk. The codec calls place with the
// chunk's numbers and length; the data are copied once, into what place returns.
type incoming struct {
	place func(piece, offset uint32, n int) ([]byte, error)
}

// codec writes and reads chunks without building a protobuf message, byte for
// byte as protobuf would (proto.dev, Encoding), and leaves every other message
// to gRPC's own codec. It is safe for concurrent use.
type codec struct{ proto encoding.CodecV2 }

func newCodec() encoding.CodecV2 {
	return codec{proto: encoding.GetCodecV2("proto")}
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
	r := data.Reader()
	defer r.Close()
	return decodeChunk(r, data.Len(), in.place)
}

// decodeChunk reads one encoded Chunk of total bytes. The data field comes last
// and at most once, as Marshal writes it; whatever else arrives is refused
// before anything is placed.
func decodeChunk(r io.Reader, total int, place func(piece, offset uint32, n int) ([]byte, error)) error {
	br := byteReader{r: r, left: min(total, headerLimit)}
	var piece, offset uint32
	for {
		tag, err := br.varint()
		if errors.Is(err, io.EOF) && br.read == total {
			return fmt.Errorf("%w: no data", errChunk)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errChunk, err)
		}
		num, typ := protowire.DecodeTag(tag)
		value, err := br.varint()
		if err != nil {
			return fmt.Errorf("%w: %w", errChunk, err)
		}
		switch {
		case num == fieldPiece && typ == protowire.VarintType && value <= 1<<32-1:
			piece = uint32(value)
		case num == fieldOffset && typ == protowire.VarintType && value <= 1<<32-1:
			offset = uint32(value)
		case num == fieldData && typ == protowire.BytesType:
			if value != uint64(total-br.read) || value == 0 {
				return fmt.Errorf("%w: data of %d bytes in a message with %d left", errChunk, value, total-br.read)
			}
			dst, err := place(piece, offset, int(value))
			if err != nil {
				return err
			}
			if _, err := io.ReadFull(r, dst); err != nil {
				return fmt.Errorf("%w: %w", errChunk, err)
			}
			return nil
		default:
			return fmt.Errorf("%w: field %d of type %d with value %d", errChunk, num, typ, value)
		}
	}
}

// byteReader reads varints off a reader, at most left bytes of them.
type byteReader struct {
	r    io.Reader
	left int
	read int
	one  [1]byte
}

func (b *byteReader) varint() (uint64, error) {
	var buf [10]byte
	for i := range buf {
		if b.left == 0 {
			return 0, io.EOF
		}
		if _, err := io.ReadFull(b.r, b.one[:]); err != nil {
			return 0, err
		}
		b.left--
		b.read++
		buf[i] = b.one[0]
		if buf[i] < 0x80 {
			v, n := protowire.ConsumeVarint(buf[:i+1])
			if n < 0 {
				return 0, protowire.ParseError(n)
			}
			return v, nil
		}
	}
	return 0, errors.New("varint is longer than ten bytes")
}
