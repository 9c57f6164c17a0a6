package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// cri speaks the two calls of the kubelet's image service (runtime.v1) that a
// pull needs. Their messages are put together by field number, which spares the
// module of the whole interface.
type cri struct{ *grpc.ClientConn }

func dialCRI(socket string) (cri, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		return cri{}, fmt.Errorf("dial CRI: %w", err)
	}
	return cri{conn}, nil
}

// pull is ImageService.PullImage with the user's name and password only, as the
// kubelet sends them.
func (c cri) pull(ctx context.Context, image string, user User) error {
	request := field(nil, 1, field(nil, 1, []byte(image)))
	if user.Name != "" {
		auth := field(field(nil, 1, []byte(user.Name)), 2, []byte(user.Password))
		request = field(request, 2, auth)
	}
	var response []byte
	if err := c.Invoke(ctx, "/runtime.v1.ImageService/PullImage", &request, &response); err != nil {
		return fmt.Errorf("PullImage %s: %w", image, err)
	}
	return nil
}

// status is ImageService.ImageStatus: the image's ID is its config's digest, the
// repo digest that of the index.
func (c cri) status(ctx context.Context, image string) (Arrived, error) {
	request := field(nil, 1, field(nil, 1, []byte(image)))
	var response []byte
	if err := c.Invoke(ctx, "/runtime.v1.ImageService/ImageStatus", &request, &response); err != nil {
		return Arrived{}, fmt.Errorf("ImageStatus %s: %w", image, err)
	}
	var out Arrived
	err := fields(response, func(number protowire.Number, value []byte) error {
		if number != 1 {
			return nil
		}
		return fields(value, func(number protowire.Number, value []byte) error {
			switch number {
			case 1:
				out.Config = string(value)
			case 3:
				_, out.Index, _ = strings.Cut(string(value), "@")
			}
			return nil
		})
	})
	return out, err
}

// field appends a field of bytes to a message.
func field(message []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(message, number, protowire.BytesType), value)
}

// fields calls each for every field of bytes in a message.
func fields(message []byte, each func(protowire.Number, []byte) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			if err := each(number, value); err != nil {
				return err
			}
		}
		message = message[n:]
	}
	return nil
}

// rawCodec passes messages that are encoded already.
type rawCodec struct{}

var errNotBytes = errors.New("rawCodec carries *[]byte only")

// Marshal returns the bytes that v points to.
func (rawCodec) Marshal(v any) ([]byte, error) {
	if b, ok := v.(*[]byte); ok {
		return *b, nil
	}
	return nil, errNotBytes
}

// Unmarshal stores data where v points to.
func (rawCodec) Unmarshal(data []byte, v any) error {
	if b, ok := v.(*[]byte); ok {
		*b = append([]byte(nil), data...)
		return nil
	}
	return errNotBytes
}

// Name is that of the codec whose encoding the bytes have.
func (rawCodec) Name() string { return "proto" }
