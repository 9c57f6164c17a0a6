package server

import (
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// denials is what nodes are told of denied nodes.
type denials struct {
	news  <-chan []identity.Statement
	known map[string]identity.Statement
	hash  string
	all   *damselflyv1.Decision // nil: nothing is known
}

func wireDenials(statements []identity.Statement) *damselflyv1.Decision {
	return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Denials{
		Denials: &damselflyv1.Denials{Statements: identity.WireStatements(statements)},
	}}
}

// gotDenials takes in what is kept now, and tells everybody who attends what is new in it.
func (s *Server) gotDenials(all []identity.Statement, ok bool) {
	d := &s.denials
	if !ok {
		d.news = nil // nothing more comes
		return
	}
	known := make(map[string]identity.Statement, len(all))
	var news []identity.Statement
	for _, one := range all {
		known[one.ID] = one
		if before, ok := d.known[one.ID]; !ok || one.Replaces(before) {
			news = append(news, one)
		}
	}
	d.known, d.hash, d.all = known, string(identity.HashStatements(all)), wireDenials(all)
	if len(news) == 0 {
		return
	}
	told := wireDenials(news)
	for _, a := range s.streams {
		s.tell(a, item{wire: told})
	}
}

// tellDenials tells a node that has come what is known, unless it knows that.
func (s *Server) tellDenials(a *attendance) {
	if s.denials.all != nil && s.denials.hash != a.denials {
		s.tell(a, item{wire: s.denials.all})
	}
}
