package odd

import "fmt"

// limits is 429 for somebody else, or once.
func limits() []Behaviour {
	loud := func(r Rule) []Rule {
		r.On, r.Status = All, 429
		return []Rule{r}
	}
	return []Behaviour{
		{Name: "limit-user", What: "another user is answered 429 with Retry-After: 4", Met: "two pods with two credentials",
			Before: []Visit{{User: "loud"}}, Rules: loud(Rule{User: "loud", RetryAfter: "4"})},
		{Name: "limit-user-blob", What: "the same for a blob", Met: "two pods with two credentials",
			Before: []Visit{{User: "loud", Layer: true}}, Rules: loud(Rule{User: "loud", RetryAfter: "4"})},
		{Name: "limit-user-untold", What: "another user is answered 429 without Retry-After", Met: "two pods with two credentials",
			Before: []Visit{{User: "loud"}}, Rules: loud(Rule{User: "loud"})},
		{Name: "limit-repository", What: "another repository is answered 429 with Retry-After: 4", Met: every,
			Before: []Visit{{Repository: "loud"}, {Repository: "loud", Layer: true}}, Rules: loud(Rule{Repository: "loud", RetryAfter: "4"})},
		{Name: "limit-repository-503", What: "another repository is answered 503 with Retry-After: 4", Met: every,
			Before: []Visit{{Repository: "loud", Layer: true}}, Rules: []Rule{{On: All, Repository: "loud", Status: 503, RetryAfter: "4"}}},
		{Name: "limit-storage", What: "the storage answers 429 for one blob with Retry-After: 4", Met: every,
			Before: []Visit{{Repository: "loud", Layer: true}}, Rules: []Rule{
				{On: Blobs, Repository: "loud", Redirect: &Redirect{Refuse: 429, RetryAfter: "4"}},
				{On: Blobs, Redirect: &Redirect{}},
			}},
		{Name: "limit-heads", What: "HEAD of another repository is answered 429 with Retry-After: 4", Met: every,
			Before: []Visit{{Repository: "loud"}}, Rules: []Rule{{On: Heads, Repository: "loud", Status: 429, RetryAfter: "4"}}},
		{Name: "limit-always", What: "a layer is answered 429 with Retry-After: 60", Met: every,
			Rules: []Rule{{On: GetBlob, Layer: true, Status: 429, RetryAfter: "60"}}},
	}
}

// headers is what goes along with requests and answers.
func headers() []Behaviour {
	return []Behaviour{
		{Name: "demand-401", What: "requests without X-Meta-Token are answered 401", Met: "containerd [host.header], dockerd HttpHeaders, curl -H",
			Demand: Demand{"X-Meta-Token", "open", 401}},
		{Name: "demand-404", What: "requests without X-Meta-Token are answered 404", Met: "containerd [host.header], dockerd HttpHeaders, curl -H",
			Demand: Demand{"X-Meta-Token", "open", 404}},
		{Name: "demand-private", What: "the same of a private registry", Met: "containerd [host.header], dockerd HttpHeaders, curl -H",
			Demand: Demand{"X-Meta-Token", "open", 403}, Auth: Auth{Scheme: "basic"}},
		{Name: "etag-weak", What: "ETags are weak", Met: every, Rules: []Rule{{On: All, ETag: `W/"1"`}}},
		{Name: "etag-other", What: "ETags are no digests", Met: every, Rules: []Rule{{On: All, ETag: `"5f3c"`}}},
		{Name: "no-digest", What: "no answer tells a digest", Met: every, Rules: []Rule{{On: All, Digest: DigestNone}}},
		{Name: "trailer", What: "bodies have a trailer and no length", Met: every, Rules: []Rule{{On: Gets, Trailer: true}}},
		{Name: "trailer-http1", What: "the same over HTTP/1.1", Met: every, HTTP1: true, Rules: []Rule{{On: Gets, Trailer: true}}},
		{Name: "close", What: "each answer ends its connection", Met: every, Rules: []Rule{{On: Gets, Close: true}}},
		{Name: "close-http1", What: "the same over HTTP/1.1", Met: every, HTTP1: true, Rules: []Rule{{On: Gets, Close: true}}},
		{Name: "early", What: "103 comes before each answer", Met: every, Rules: []Rule{{On: All, Early: true}}},
		{Name: "early-http1", What: "the same over HTTP/1.1", Met: every, HTTP1: true, Rules: []Rule{{On: All, Early: true}}},
		{Name: "head-none-http1", What: "HEAD tells nothing: no length, no digest, no type", Met: "podman, skopeo, curl", HTTP1: true,
			Rules: []Rule{{On: Heads, Length: LengthNone, Digest: DigestNone, Type: "-"}}},
	}
}

// credentials is what registries want and how they ask.
func credentials() (out []Behaviour) {
	for _, row := range []struct {
		name, what string
		auth       Auth
	}{
		{"basic", "a password", Auth{Scheme: "basic"}},
		{"bearer", "a token of the registry's own host", Auth{Scheme: "bearer"}},
		{"bearer-elsewhere", "a token of another host", Auth{Scheme: "bearer", RealmElsewhere: true}},
		{"bearer-query", "a token of a realm with a query", Auth{Scheme: "bearer", Query: "?account=main"}},
		{"bearer-scope-wide", "a token for more than pull", Auth{Scheme: "bearer", Scope: "repository:%s:pull,push"}},
		{"bearer-scope-two", "a token for two scopes", Auth{Scheme: "bearer", Scope: "registry:catalog:* repository:%s:pull"}},
		{"bearer-scope-none", "a token, whose scope the challenge does not tell", Auth{Scheme: "bearer", Scope: "-"}},
		{"bearer-public", "a token that everybody gets", Auth{Scheme: "bearer", Public: true}},
		{"bearer-public-elsewhere", "the same of another host", Auth{Scheme: "bearer", Public: true, RealmElsewhere: true}},
		{"basic-403", "a password; a wrong one is answered 403", Auth{Scheme: "basic", Forbidden: true}},
		{"only-tags", "a password for tags; what is named by digest is public", Auth{Scheme: "basic", OnlyTags: true}},
	} {
		out = append(out, Behaviour{Name: "auth-" + row.name, What: "the registry wants " + row.what, Met: every, Auth: row.auth})
	}
	return append(out,
		Behaviour{Name: "auth-unlisted", What: "a token of another host under the registry's CA, which no configuration names", Met: every,
			Unlisted: true, Auth: Auth{Scheme: "bearer", RealmElsewhere: true}},
		Behaviour{Name: "auth-head-403", What: "a private registry refuses HEAD with 403", Met: "podman, skopeo, curl",
			Auth: Auth{Scheme: "basic"}, Rules: []Rule{{On: Heads, Status: 403}}},
		Behaviour{Name: "tag-404", What: "a tag is answered 404, its digest 200", Met: "whoever pulls by digest",
			Rules: []Rule{{On: HeadTag | GetTag, Status: 404}}})
}

// small is very small things.
func small() (out []Behaviour) {
	out = []Behaviour{
		{Name: "empty-layer", What: "a layer has no bytes", Met: every, Shape: Shape{EmptyLayer: true}},
		{Name: "empty-last-layer", What: "the only layer has no bytes and is asked for by ranges", Met: every,
			Shape: Shape{EmptyLayer: true, Layers: []int64{1}}},
		{Name: "tiny-config", What: "the config is {}", Met: every, Shape: Shape{TinyConfig: true}},
	}
	for _, status := range []int{404, 405} {
		out = append(out, Behaviour{Name: fmt.Sprint("empty-layer-head-", status), What: fmt.Sprintf("a layer has no bytes, and HEAD is answered %d", status),
			Met: every, Shape: Shape{EmptyLayer: true}, Rules: []Rule{{On: HeadBlob, Status: status}}})
	}
	return out
}
