{{/* canal-dns's configuration file, and what the objects around it take from it. */}}

{{/* `config` as it is; a Service of ours that is not called canal-dns is protected by name. */}}
{{- define "canal-dns.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $name := include "canal-dns.fullname" . -}}
{{- if ne $name "canal-dns" -}}
{{- $binding := default (dict) $config.binding -}}
{{- $own := printf "%s/%s" .Release.Namespace $name -}}
{{- $protected := append (default (list) $binding.protected) $own | uniq -}}
{{- $_ := set $config "binding" (merge (dict "protected" $protected) $binding) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The port at the end of ADDRESS:PORT. */}}
{{- define "canal-dns.portOf" -}}
{{- regexFind "[0-9]+$" (toString .) -}}
{{- end -}}

{{- define "canal-dns.dnsPort" -}}
{{- include "canal-dns.portOf" (first .Values.config.listen) -}}
{{- end -}}

{{- define "canal-dns.adminPort" -}}
{{- include "canal-dns.portOf" .Values.config.admin -}}
{{- end -}}

{{/* A time such as 500ms, 15s, 2m or 1h in whole seconds, rounded up. */}}
{{- define "canal-dns.seconds" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $factor := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) (regexFind "[a-z]+$" $text) | default 1.0 -}}
{{- mulf $number $factor | ceil | int -}}
{{- end -}}

{{- define "canal-dns.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "canal-dns.seconds" (default "15s" .Values.config.lameduck) | int) 15 -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* The namespaces of the internal gateways, each once, as a JSON list. */}}
{{- define "canal-dns.gatewayNamespaces" -}}
{{- $found := list -}}
{{- range .Values.config.gateways -}}
{{- $found = append $found (splitList "/" .service | first) -}}
{{- end -}}
{{- $found | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Combinations that would install and then not work: each is refused here, with what helps. */}}
{{- define "canal-dns.check" -}}
{{- $config := .Values.config -}}
{{- if and (eq .Values.coredns.layout "B") (eq (toString (default "do" $config.upstreamSentinel)) "none") -}}
{{- fail "config.upstreamSentinel: Layout B needs `do`: it is what tells canal-dns's questions from the clients'" -}}
{{- end -}}
{{- $plain := .Values.coredns.plainClusterIP -}}
{{- range $config.upstreams -}}
{{- if and (eq $.Values.coredns.layout "A") (ne (regexReplaceAll ":[0-9]+$" . "") $plain) -}}
{{- fail (printf "config.upstreams: in Layout A it must be the Service coredns-plain (coredns.plainClusterIP %s); %s would ask canal-dns again" $plain .) -}}
{{- end -}}
{{- if eq (regexReplaceAll ":[0-9]+$" . "") $.Values.service.clusterIP -}}
{{- fail (printf "config.upstreams: %s is the Service of canal-dns itself (service.clusterIP): every forwarded question would loop" .) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "^(127\\.|\\[::1\\])" (toString $config.admin) -}}
{{- fail (printf "config.admin: the kubelet's probes do not reach %s" $config.admin) -}}
{{- end -}}
{{- if .Values.internalGateway.enabled -}}
{{- $named := list -}}
{{- range $config.gateways -}}{{- $named = append $named .service -}}{{- end -}}
{{- if not (has (printf "%s/%s" .Values.internalGateway.namespace .Values.internalGateway.name) $named) -}}
{{- fail (printf "config.gateways: internalGateway is enabled, so %s/%s must stand here" .Values.internalGateway.namespace .Values.internalGateway.name) -}}
{{- end -}}
{{- end -}}
{{- $lameduck := include "canal-dns.seconds" (default "15s" $config.lameduck) | int -}}
{{- if lt (include "canal-dns.gracePeriod" . | int) (add $lameduck 10 | int) -}}
{{- fail (printf "terminationGracePeriodSeconds: at least %d is needed, config.lameduck and 10 s" (add $lameduck 10)) -}}
{{- end -}}
{{- end -}}
