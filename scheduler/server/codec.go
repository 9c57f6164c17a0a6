package server

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	pb "google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Codec is gRPC's own for protobuf, without its garbage for what nodes and this package
// say to each other all the time. It is for the gRPC server that Server is registered
// with (grpc.ForceServerCodecV2), which needs it.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(proto.Name)} }

type codec struct{ encoding.CodecV2 }

// frame takes the bytes of a message as they came, into memory that is used again.
type frame struct{ bytes []byte }

// frameKept bounds the memory that a frame keeps.
const frameKept = 4 << 10

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	n := data.Len()
	if cap(f.bytes) < n {
		f.bytes = make([]byte, n)
	}
	f.bytes = f.bytes[:n]
	data.CopyTo(f.bytes)
	return nil
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*damselflyv1.SchedulerMessage)
	if !ok || pb.Size(m) > buffers.size {
		return c.CodecV2.Marshal(v)
	}
	b := buffers.Get(buffers.size)
	var err error
	if *b, err = (pb.MarshalOptions{UseCachedSize: true}).MarshalAppend((*b)[:0], m); err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, buffers)}, nil
}

// buffers are for messages to nodes, from when they are made until they are written.
// gRPC uses no buffer again that has 1 KiB or less.
var buffers = &bufferPool{size: 1280}

type bufferPool struct {
	size int
	pool sync.Pool
}

func (p *bufferPool) Get(int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, p.size)
	return &b
}

func (p *bufferPool) Put(b *[]byte) { p.pool.Put(b) }
