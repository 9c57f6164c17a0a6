package identity

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// wireMethod is a method as the generated code registers it.
type wireMethod struct {
	name   string
	stream *grpc.StreamDesc
}

// wireMethods walks the generated ServiceDescs, and checks that these are all
// services of damselfly.v1.
func wireMethods(t *testing.T) []wireMethod {
	t.Helper()
	descs := []grpc.ServiceDesc{
		damselflyv1.Identity_ServiceDesc,
		damselflyv1.Peer_ServiceDesc,
		damselflyv1.Scheduler_ServiceDesc,
	}
	var names []string
	var methods []wireMethod
	for _, d := range descs {
		names = append(names, d.ServiceName)
		for _, m := range d.Methods {
			methods = append(methods, wireMethod{name: "/" + d.ServiceName + "/" + m.MethodName})
		}
		for _, s := range d.Streams {
			methods = append(methods, wireMethod{name: "/" + d.ServiceName + "/" + s.StreamName, stream: &s})
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("damselfly.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			if name := string(f.Services().Get(i).FullName()); !slices.Contains(names, name) {
				t.Errorf("service %s is on the wire, but this test does not know it", name)
			}
		}
		return true
	})
	return methods
}

// call calls a method with an empty request and returns its status.
func call(t *testing.T, conn *grpc.ClientConn, m wireMethod) codes.Code {
	t.Helper()
	request, answer := &damselflyv1.JoinRequest{}, &damselflyv1.Certificate{}
	if m.stream == nil {
		return status.Code(conn.Invoke(t.Context(), m.name, request, answer))
	}
	s, err := conn.NewStream(t.Context(), m.stream, m.name)
	if err != nil {
		return status.Code(err)
	}
	// What a send fails with, the receive says better.
	_ = s.SendMsg(request)
	_ = s.CloseSend()
	err = s.RecvMsg(answer)
	if err != nil && err.Error() == "EOF" {
		return codes.OK
	}
	return status.Code(err)
}

func TestTableNamesEveryMethodAndNoOther(t *testing.T) {
	table := MethodRoles()
	for _, m := range wireMethods(t) {
		roles, ok := table[m.name]
		if !ok || len(roles) == 0 {
			t.Errorf("nobody may call %s: the table forgets it", m.name)
		}
		for _, r := range roles {
			if _, err := ParseRole(string(r)); err != nil && r != Anybody {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		withToken := []string{"/damselfly.v1.Identity/Join", "/damselfly.v1.Identity/ShareAuthority"}
		if slices.Contains(roles, Anybody) && !slices.Contains(withToken, m.name) {
			t.Errorf("%s is open to anybody", m.name)
		}
		delete(table, m.name)
	}
	for name := range table {
		t.Errorf("the table names %s, which is not on the wire", name)
	}
}

func TestWhoMayCallWhat(t *testing.T) {
	ca := testCA(t)
	service, err := ca.Server(Options{})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, testIdentity(t, ca, RoleScheduler), service)
	conns := map[Role]*grpc.ClientConn{Anybody: dial(t, address, anonymous())}
	for _, role := range []Role{RoleNode, RoleSeed, RoleScheduler} {
		conns[role] = dial(t, address, testIdentity(t, ca, role).ClientCredentials(anyRole()))
	}
	// INVALID_ARGUMENT is past the door: the empty request was read.
	const in, no, who = codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated
	want := map[string]map[Role]codes.Code{
		"/damselfly.v1.Identity/Join":           {Anybody: in, RoleNode: in, RoleSeed: in, RoleScheduler: in},
		"/damselfly.v1.Identity/ShareAuthority": {Anybody: in, RoleNode: in, RoleSeed: in, RoleScheduler: in},
		"/damselfly.v1.Identity/Renew":          {Anybody: who, RoleNode: in, RoleSeed: in, RoleScheduler: in},
		"/damselfly.v1.Peer/Read":               {Anybody: who, RoleNode: codes.OK, RoleSeed: codes.OK, RoleScheduler: no},
		"/damselfly.v1.Peer/Holdings":           {Anybody: who, RoleNode: codes.OK, RoleSeed: codes.OK, RoleScheduler: no},
		"/damselfly.v1.Peer/Credential":         {Anybody: who, RoleNode: no, RoleSeed: codes.OK, RoleScheduler: no},
		"/damselfly.v1.Scheduler/Attend":        {Anybody: who, RoleNode: codes.OK, RoleSeed: codes.OK, RoleScheduler: no},
		"/damselfly.v1.Scheduler/Nodes":         {Anybody: who, RoleNode: no, RoleSeed: no, RoleScheduler: codes.OK},
	}
	for _, m := range wireMethods(t) {
		for role, conn := range conns {
			code, ok := want[m.name][role]
			if !ok {
				t.Fatalf("this test does not say who may call %s", m.name)
			}
			if got := call(t, conn, m); got != code {
				t.Errorf("%s called by %s: %s, want %s", m.name, role, got, code)
			}
		}
	}
}

func TestMethodOutsideTheTableIsDenied(t *testing.T) {
	ca := testCA(t)
	id := testIdentity(t, ca, RoleNode)
	table := MethodRoles()
	delete(table, damselflyv1.Peer_Holdings_FullMethodName)
	delete(table, damselflyv1.Peer_Read_FullMethodName)
	address := serveWith(t, id.ServerCredentials(), table)
	conn := dial(t, address, testIdentity(t, ca, RoleSeed).ClientCredentials(anyRole()))
	for _, m := range wireMethods(t) {
		if _, ok := table[m.name]; ok {
			continue
		}
		if got := call(t, conn, m); got != codes.PermissionDenied {
			t.Errorf("%s is in no table, and answers %s", m.name, got)
		}
	}
}

func TestDenialNamesMethodAndRole(t *testing.T) {
	ca := testCA(t)
	address, _ := serve(t, testIdentity(t, ca, RoleNode), nil)
	conn := dial(t, address, testIdentity(t, ca, RoleNode).ClientCredentials(anyRole()))
	_, err := damselflyv1.NewPeerClient(conn).Credential(t.Context(), &damselflyv1.CredentialRequest{})
	if want := "/damselfly.v1.Peer/Credential is not open to the role node"; status.Convert(err).Message() != want {
		t.Fatalf("denied with %v, want %q", err, want)
	}
}

// TestCallOnAConnectionThatOutlivedItsCertificate is for servers that took
// ServerTLS alone, so that nothing closes their connections.
func TestCallOnAConnectionThatOutlivedItsCertificate(t *testing.T) {
	ca := testCA(t)
	id := issuedAt(t, ca, RoleNode, time.Now().Add(-certLifetime-leeway-time.Second))
	address := serveWith(t, lax{issuedAt(t, ca, RoleNode, time.Now())}.credentials(), MethodRoles())
	err := holdings(t, dial(t, address, id.ClientCredentials(anyRole())))
	if status.Code(err) != codes.Unauthenticated {
		t.Fatalf("call with an expired certificate: %v", err)
	}
}
