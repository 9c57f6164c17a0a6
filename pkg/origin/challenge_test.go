package origin

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	p := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		in   []string
		want []challenge
	}{
		"docker hub": {
			[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"`},
			[]challenge{{"bearer", p("realm", "https://auth.docker.io/token", "service", "registry.docker.io", "scope", "repository:library/x:pull")}},
		},
		"basic":                 {[]string{`Basic realm="test"`}, []challenge{{"basic", p("realm", "test")}}},
		"scheme in any case":    {[]string{`bEaReR REALM="x"`}, []challenge{{"bearer", p("realm", "x")}}},
		"comma in quotes":       {[]string{`Bearer realm="x",scope="repository:a:pull,push",service=y`}, []challenge{{"bearer", p("realm", "x", "scope", "repository:a:pull,push", "service", "y")}}},
		"escaped quote":         {[]string{`Basic realm="a \"b\" \\c"`}, []challenge{{"basic", p("realm", `a "b" \c`)}}},
		"unquoted URL":          {[]string{`Bearer realm=https://h/t,service=s`}, []challenge{{"bearer", p("realm", "https://h/t", "service", "s")}}},
		"several in one field":  {[]string{`Negotiate, Basic realm="a", Bearer realm="b",service="c"`}, []challenge{{"negotiate", p()}, {"basic", p("realm", "a")}, {"bearer", p("realm", "b", "service", "c")}}},
		"several fields":        {[]string{`Basic realm="a"`, `Bearer realm="b"`}, []challenge{{"basic", p("realm", "a")}, {"bearer", p("realm", "b")}}},
		"token68 before bearer": {[]string{`NTLM abc+/==, Bearer realm="b"`}, []challenge{{"ntlm", p()}, {"bearer", p("realm", "b")}}},
		"spaces around equals":  {[]string{`Bearer realm = "b" , service	=	c`}, []challenge{{"bearer", p("realm", "b", "service", "c")}}},
		"first value counts":    {[]string{`Bearer realm="a",realm="b"`}, []challenge{{"bearer", p("realm", "a")}}},
		"error kept":            {[]string{`Bearer realm="a",error="invalid_token"`}, []challenge{{"bearer", p("realm", "a", "error", "invalid_token")}}},
		"no closing quote":      {[]string{`Bearer realm="a`}, []challenge{{"bearer", p()}}},
		"nothing":               {[]string{"", " , ,", "=", `"x"`}, nil},
		"too long":              {[]string{"Bearer realm=" + strings.Repeat("a", maxChallenge)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parseChallenges(c.in); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestParseRealm(t *testing.T) {
	https, http := &url.URL{Scheme: "https", Host: "r.example"}, &url.URL{Scheme: "http", Host: "r.example"}
	for _, c := range []struct {
		realm string
		home  *url.URL
		ok    bool
	}{
		{"https://auth.example/token?x=1", https, true},
		{"https://auth.example/token", http, true},
		{"http://auth.example/token", http, true},
		{"http://auth_server:5001/token", http, true},
		{"http://auth.example/token", https, false},
		{"https://user:pass@auth.example/token", https, false},
		{"file:///etc/passwd", http, false},
		{"/token", https, false},
		{"", https, false},
		{"https://" + strings.Repeat("a", maxRealm), https, false},
	} {
		if _, err := parseRealm(c.realm, c.home); (err == nil) != c.ok {
			t.Errorf("parseRealm(%q, %s): %v", c.realm, c.home.Scheme, err)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://h/t",service="s",scope="repository:a:pull,push"`)
	f.Add(`Negotiate abc==, Basic realm="a \" b", Bearer realm=b`)
	f.Add(`Digest realm="a",`)
	f.Fuzz(func(t *testing.T, s string) {
		cs := parseChallenges([]string{s, s})
		if len(cs) > maxChallenges {
			t.Fatalf("%d challenges", len(cs))
		}
		for _, c := range cs {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("scheme %q", c.scheme)
			}
			for k, v := range c.params {
				if k == "" || k != strings.ToLower(k) || len(v) > len(s) {
					t.Fatalf("parameter %q=%q", k, v)
				}
			}
			// Whatever a registry says, what the token library is shown reads back
			// as the very realm, or is not shown.
			sv := solver{home: &url.URL{Scheme: "https", Host: "r.example:5000"}}
			realm, err := parseRealm(c.params["realm"], sv.home)
			if err != nil {
				continue
			}
			hidden, err := url.Parse(sv.hideRealm(realm))
			if err != nil {
				t.Fatal(err)
			}
			shown, err := sv.showRealm(hidden)
			if err != nil || shown.Host != realm.Host || shown.Path != realm.Path || shown.Scheme != realm.Scheme {
				t.Fatalf("realm %s read back as %v, %v", realm, shown, err)
			}
		}
	})
}
