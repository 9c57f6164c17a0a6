package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// oddScheduler answers with whatever answer makes of the caller's key.
type oddScheduler struct {
	damselflyv1.UnimplementedIdentityServer
	answer func(ed25519.PublicKey) *damselflyv1.Certificate
}

func (s *oddScheduler) Join(_ context.Context, r *damselflyv1.JoinRequest) (*damselflyv1.Certificate, error) {
	public, _, err := parseRequest(r.GetCsr())
	return s.answer(public), err
}

func (s *oddScheduler) Renew(_ context.Context, r *damselflyv1.RenewRequest) (*damselflyv1.Certificate, error) {
	public, _, err := parseRequest(r.GetCsr())
	return s.answer(public), err
}

func answerOf(chain []*x509.Certificate, roots ...*x509.Certificate) *damselflyv1.Certificate {
	answer := &damselflyv1.Certificate{}
	for _, c := range chain {
		answer.Chain = append(answer.Chain, c.Raw)
	}
	for _, c := range roots {
		answer.Roots = append(answer.Roots, c.Raw)
	}
	return answer
}

// TestAnswersThatAreNotTaken: whatever a scheduler with a defect sends, a node
// keeps what it has.
func TestAnswersThatAreNotTaken(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	next, err := ca.Successor(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by *CA, public ed25519.PublicKey, role Role) []*x509.Certificate {
		chain, err := by.issue(public, role, time.Now())
		if err != nil {
			t.Error(err)
		}
		return chain
	}
	stranger := publicOf(t, testKey(t))
	for name, c := range map[string]struct {
		answer    func(ed25519.PublicKey) *damselflyv1.Certificate
		renewOnly bool
		joinOnly  bool
	}{
		"nothing": {answer: func(ed25519.PublicKey) *damselflyv1.Certificate { return &damselflyv1.Certificate{} }},
		"no roots": {answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(ca, k, RoleNode))
		}},
		"garbage": {answer: func(ed25519.PublicKey) *damselflyv1.Certificate {
			return &damselflyv1.Certificate{Chain: [][]byte{{1, 2, 3}}, Roots: [][]byte{{4}}}
		}},
		"a thousand roots": {answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			a := answerOf(issue(ca, k, RoleNode))
			for range 1000 {
				a.Roots = append(a.Roots, []byte{})
			}
			return a
		}},
		"for another key": {answer: func(ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(ca, stranger, RoleNode), ca.cert)
		}},
		"signed by another CA": {answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(other, k, RoleNode), ca.cert)
		}},
		"roots of two clusters": {answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(ca, k, RoleNode), ca.cert, other.cert)
		}},
		"a leaf as root": {answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			chain := issue(ca, k, RoleNode)
			return answerOf(chain, ca.cert, chain[0])
		}},
		"without the pinned CA": {joinOnly: true, answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(next, k, RoleNode), next.cert)
		}},
		"another role": {renewOnly: true, answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(ca, k, RoleSeed), ca.cert)
		}},
		"another cluster": {renewOnly: true, answer: func(k ed25519.PublicKey) *damselflyv1.Certificate {
			return answerOf(issue(other, k, RoleNode), other.cert)
		}},
	} {
		address, _ := serve(t, testIdentity(t, ca, RoleScheduler), &oddScheduler{answer: c.answer})
		if !c.renewOnly {
			if id, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, RoleNode, time.Hour, 1), Options{}); err == nil {
				t.Errorf("%s: joined as %s", name, id.Peer())
			}
		}
		if !c.joinOnly {
			id := testIdentity(t, ca, RoleNode)
			id.issuer = &remoteIssuer{scheduler: address}
			before := id.current.Load()
			if err := id.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "renew certificate") {
				t.Errorf("%s: renewed as %s: %v", name, id.Peer(), err)
			}
			if id.current.Load() != before {
				t.Errorf("%s: the good certificate is gone", name)
			}
		}
	}
}
