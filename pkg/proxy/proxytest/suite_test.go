package proxytest_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf is an origin that keeps one blob, or refuses.
type shelf struct {
	status int
	data   []byte
}

func (s *shelf) Get(context.Context, origin.Ref, http.Header) (*http.Response, error) {
	return &http.Response{StatusCode: s.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(s.data))}, nil
}

func TestFakePassesTheSuite(t *testing.T) {
	proxytest.TestTasks(t, func(t *testing.T) proxytest.World {
		from := &shelf{status: http.StatusOK}
		tasks := proxytest.NewTasks(t.TempDir(), from)
		request := func(data []byte) proxy.Request {
			return proxy.Request{Digest: blob.FromBytes(data), Size: int64(len(data)), Length: -1}
		}
		return proxytest.World{
			Tasks: tasks,
			Kept: func(data []byte) proxy.Request {
				from.data = data
				return request(data)
			},
			Stuck: func(data []byte) (proxy.Request, func()) {
				b := tasks.Add(data, 0)
				return request(data), func() { b.Arrive(int64(len(data))) }
			},
			Refused: func(status int) proxy.Request {
				from.status = status
				return request([]byte("refused"))
			},
		}
	})
}
