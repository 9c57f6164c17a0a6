package fabric

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Each of many ports reaches each other one: the kernel's table of neighbours, which
// all namespaces share, is too small for what they would learn of each other.
func TestEveryPortReachesEveryOther(t *testing.T) {
	const many = 40
	f := newFabric(t)
	ports := make([]*Port, many)
	for i := range ports {
		ports[i] = port(t, f, fmt.Sprintf("n%d", i), Link{rate, rate})
	}
	for _, to := range ports {
		l, err := to.Listen(t.Context(), "tcp", to.Addr().String()+":7")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for _, from := range ports {
		for _, to := range ports {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			conn, err := from.Dial(ctx, "tcp", to.Addr().String()+":7")
			cancel()
			if err != nil {
				t.Fatalf("from %s to %s: %v", from.Name(), to.Name(), err)
			}
			conn.Close()
		}
	}
}
