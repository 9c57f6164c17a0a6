package identity

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Strangers may join and nothing else, and this is said before a byte of their message
// is read.
func TestStrangersAreTurnedAwayBeforeTheirMessage(t *testing.T) {
	handle := TapHandle(MethodRoles())
	call := func(ctx context.Context, method string) codes.Code {
		_, err := handle(ctx, &tap.Info{FullMethodName: method})
		return status.Code(err)
	}
	for _, method := range []string{damselflyv1.Scheduler_Attend_FullMethodName, damselflyv1.Identity_Renew_FullMethodName, "/no/method"} {
		if got := call(t.Context(), method); got != codes.Unauthenticated {
			t.Errorf("%s is answered with %v", method, got)
		}
	}
	if got := call(t.Context(), damselflyv1.Identity_Join_FullMethodName); got != codes.OK {
		t.Errorf("a join is answered with %v", got)
	}
}
