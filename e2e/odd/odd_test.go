package odd

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestNames checks that every behaviour can be a repository's name, once.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, b := range append(Behaviours(), Slow()...) {
		if seen[b.Name] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(b.Name) {
			t.Errorf("%q is there twice or no name of a repository", b.Name)
		}
		if seen[b.Name] = true; b.What == "" || b.Met == "" {
			t.Errorf("%s does not say what it is and who meets it", b.Name)
		}
	}
}

// judgeBy judges some behaviours by faces that go around a node, which change has
// changed.
func judgeBy(t *testing.T, change func(http.RoundTripper) http.RoundTripper, names ...string) []Verdict {
	t.Helper()
	var registries [][]Behaviour
	for _, b := range Behaviours() {
		if slices.Contains(names, b.Name) {
			registries = append(registries, []Behaviour{b})
		}
	}
	s, err := Start(Config{Dir: t.TempDir(), Registries: registries})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	faces, err := NewFaces("", "", s.CAFile, s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	through := faces.Direct
	through.client = func() *http.Client {
		c := faces.Direct.client()
		c.Transport = change(c.Transport)
		return c
	}
	faces.NS, faces.Path, faces.Connect = through, through, through
	out, err := Judge(t.Context(), s, faces, faces)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestJudgeIsFair checks that what changes nothing is not worse than itself.
func TestJudgeIsFair(t *testing.T) {
	found := judgeBy(t, func(next http.RoundTripper) http.RoundTripper { return next },
		"healthy", "head-manifest-404", "head-digest-former", "chunked-no-size", "close-delimited", "layer-size-plus", "schema1", "gzip",
		"redirect-two-hops", "redirect-private", "range-untold", "fails-cut-once", "limit-user", "demand-401", "auth-bearer-query", "empty-layer")
	if len(found) < 16*6 {
		t.Errorf("%d verdicts, want six clients' at each of 16 behaviours", len(found))
	}
	for _, v := range found {
		if len(v.Worse) > 0 {
			t.Errorf("%s %s: worse than itself: %s", v.Behaviour, v.Client, v.Worse)
		}
		if v.Behaviour == "healthy" && v.Client != "stranger" && !v.Pulled {
			t.Errorf("%s does not pull from a healthy registry", v.Client)
		}
	}
}

// spoiler changes answers.
type spoiler struct {
	next  http.RoundTripper
	spoil func(*http.Response)
}

func (s spoiler) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.next.RoundTrip(r)
	if err == nil && strings.HasPrefix(r.URL.Path, "/v2/healthy/") {
		s.spoil(resp)
	}
	return resp, err
}

// TestJudgeSees checks that each client sees what is worse.
func TestJudgeSees(t *testing.T) {
	body := func(resp *http.Response, change func([]byte) []byte) {
		content, err := io.ReadAll(resp.Body)
		if err != nil {
			return
		}
		content = change(content)
		resp.Body = io.NopCloser(bytes.NewReader(content))
	}
	for name, spoil := range map[string]func(*http.Response){
		"a status": func(resp *http.Response) {
			if resp.Request.Method == http.MethodGet {
				resp.StatusCode = http.StatusBadGateway
			}
		},
		"other bytes": func(resp *http.Response) {
			body(resp, func(b []byte) []byte { return append(b[:max(len(b)-1, 0)], '!') })
		},
		"no type": func(resp *http.Response) { resp.Header.Del("Content-Type") },
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range judgeBy(t, func(next http.RoundTripper) http.RoundTripper { return spoiler{next, spoil} }, "healthy") {
				if len(v.Worse) == 0 || v.Late {
					t.Errorf("%s does not see it", v.Client)
				}
			}
		})
	}
}

// TestRandomIsReproducible checks that a seed names one behaviour.
func TestRandomIsReproducible(t *testing.T) {
	all, one := Random(1, 64), Random(42, 1)
	again := one[42%len(one)][0].String()
	for _, behaviours := range all {
		for _, b := range behaviours {
			if b.Name == "random-42" && b.String() != again {
				t.Errorf("seed 42 is\n%s\nand\n%s", b, again)
			}
		}
	}
}
