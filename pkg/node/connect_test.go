package node

import (
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// welcomer welcomes everybody.
type welcomer struct {
	damselflyv1.UnimplementedSchedulerServer
}

func (welcomer) Attend(st grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]) error {
	if err := st.Send(&damselflyv1.SchedulerMessage{Decisions: []*damselflyv1.Decision{{Decision: &damselflyv1.Decision_Welcome{}}}}); err != nil {
		return err
	}
	<-st.Context().Done()
	return nil
}

// A starting point is any scheduler of the cluster; a scheduler that was named is
// that one and no other.
func TestOnlySchedulersAreAttended(t *testing.T) {
	cluster, other := identitytest.Cluster(t), identitytest.Cluster(t)
	scheduler, stranger := cluster.Identity(t, identity.RoleScheduler), other.Identity(t, identity.RoleScheduler)
	seed := cluster.Identity(t, identity.RoleSeed)
	for name, c := range map[string]struct {
		serves *identity.Identity
		named  string
		ok     bool
	}{
		"starting point":       {scheduler, "", true},
		"named":                {scheduler, scheduler.ID(), true},
		"another one":          {scheduler, stranger.ID(), false},
		"of another cluster":   {stranger, "", false},
		"a seed":               {seed, "", false},
		"a seed that is named": {seed, seed.ID(), false},
	} {
		t.Run(name, func(t *testing.T) {
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			srv := grpc.NewServer(grpc.Creds(c.serves.ServerCredentials()))
			damselflyv1.RegisterSchedulerServer(srv, welcomer{})
			done := make(chan error, 1)
			go func() { done <- srv.Serve(lis) }()
			defer func() {
				srv.Stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			conn, err := connector{cluster.Identity(t, identity.RoleNode)}.Connect(control.Holder{ID: c.named, Address: lis.Addr().String()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}()
			st, err := conn.Attend(t.Context())
			if err == nil {
				_, err = st.Recv()
			}
			if (err == nil) != c.ok {
				t.Fatalf("attending ended with %v", err)
			}
			if c.ok && conn.ID(st.Context()) != c.serves.ID() {
				t.Errorf("it is said to be %q", conn.ID(st.Context()))
			}
		})
	}
}

func TestSchedulersAreAList(t *testing.T) {
	var a Addresses
	for text, want := range map[string]Addresses{"": nil, "a:1": {"a:1"}, " a:1 , b:2": {"a:1", "b:2"}} {
		if err := a.UnmarshalText([]byte(text)); err != nil || !slices.Equal(a, want) || a.validate() != nil {
			t.Errorf("%q gives %v, %v", text, a, err)
		}
		if back, err := a.MarshalText(); err != nil || a.UnmarshalText(back) != nil || !slices.Equal(a, want) {
			t.Errorf("%q came back as %q", text, back)
		}
	}
	for _, text := range []string{"a", "a:1,", "a:1,,b:1", ":1", "a:"} {
		if err := a.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if a.validate() == nil {
			t.Errorf("%q passes", text)
		}
	}
}
