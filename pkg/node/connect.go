package node

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Addresses are the host:port of schedulers, written with commas between.
type Addresses []string

// String implements fmt.Stringer.
func (a Addresses) String() string { return strings.Join(a, ",") }

// MarshalText implements encoding.TextMarshaler.
func (a Addresses) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. What each address is like is
// left to Config.Validate.
func (a *Addresses) UnmarshalText(text []byte) error {
	*a = nil
	if strings.TrimSpace(string(text)) == "" {
		return nil
	}
	for one := range strings.SplitSeq(string(text), ",") {
		*a = append(*a, strings.TrimSpace(one))
	}
	return nil
}

func (a Addresses) validate() error {
	for _, one := range a {
		if host, port, err := net.SplitHostPort(one); err != nil || host == "" || port == "" {
			return fmt.Errorf("scheduler %q is no host:port, such as scheduler.example.com:65000; several are written with commas between", one)
		}
	}
	return nil
}

// connector opens connections to schedulers, as this node.
type connector struct{ id *identity.Identity }

// conn is one of them.
type conn struct {
	damselflyv1.SchedulerClient
	cc *grpc.ClientConn
}

// Connect implements control.Connector. Of a name with several addresses, one that
// answers is taken.
func (c connector) Connect(to control.Holder) (control.Conn, error) {
	expect := identity.Expect{Roles: []identity.Role{identity.RoleScheduler}, ID: to.ID}
	cc, err := grpc.NewClient("dns:///"+to.Address,
		grpc.WithTransportCredentials(c.id.ClientCredentials(expect)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`),
		grpc.WithNoProxy(),
		// Windows of a fixed size turn off gRPC's bandwidth estimator, which answers
		// nearly every small message with a ping of its own.
		grpc.WithStaticStreamWindowSize(1<<20),
		grpc.WithStaticConnWindowSize(2<<20),
	)
	if err != nil {
		return nil, err
	}
	return &conn{damselflyv1.NewSchedulerClient(cc), cc}, nil
}

// ID implements control.Conn: the handshake has checked the certificate.
func (*conn) ID(stream context.Context) string {
	p, _ := identity.PeerFromContext(stream)
	return p.ID
}

// Close implements control.Conn.
func (c *conn) Close() error { return c.cc.Close() }
