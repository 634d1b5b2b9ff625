"""Looks of the audit's page."""

STYLE = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#20242b;--faint:#6b7280;--line:#e6e3dd;--good:#2f7d6b;
--bad:#c0392b;--soft:#eef1ee;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#15181d;--card:#1d2127;--ink:#e8e6e1;
--faint:#9aa1ab;--line:#2e343c;--good:#5cc0a5;--bad:#ef7d6e;--soft:#262c33}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 20px 60px}
h1{font-size:clamp(28px,5vw,44px);line-height:1.15;margin:.1em 0 .5em;letter-spacing:-.02em}
h2{font-size:24px;margin:2.2em 0 .3em;letter-spacing:-.01em}
h3{font-size:16px;margin:1.2em 0 .4em}
h3 span{font-weight:500;font-size:12px;color:var(--faint);border:1px solid var(--line);
border-radius:99px;padding:1px 8px;margin-left:6px;vertical-align:1px}
p{margin:.4em 0}.over,.note,footer,.open{color:var(--faint)}.note,footer{font-size:14px}
.over{text-transform:uppercase;letter-spacing:.08em;font-size:12px}
.verdict{font-size:19px;max-width:46em}.open{font-size:14px;max-width:60em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;
margin:28px 0}
.card,article{background:var(--card);border:1px solid var(--line);border-radius:14px;
padding:14px 16px}
.card h3{margin:0;font-size:14px;min-height:3em}.card p{font-size:13px;color:var(--faint)}
.card .big,.big{font-size:34px;line-height:1.1;font-weight:650;color:var(--ink);
font-variant-numeric:tabular-nums;margin:.1em 0}
.bar{position:relative;height:10px;border-radius:5px;background:var(--soft);margin:6px 0}
.bar b{position:absolute;inset:0 auto 0 0;border-radius:5px;background:var(--good)}
.bar.bad b{background:var(--bad)}
.bar u{position:absolute;top:4px;height:2px;background:var(--ink);opacity:.55}
.bar .was{position:absolute;top:-3px;width:2px;height:16px;background:var(--ink)}
table{border-collapse:collapse;width:100%;font-size:14px;margin:.6em 0}
th{color:var(--faint);font-weight:500;text-align:left}
th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line)}
.num{font-variant-numeric:tabular-nums;white-space:nowrap}.wide{width:34%;min-width:90px}
article{margin:14px 0}article h3{margin:0}
.attack{display:flex;gap:20px;align-items:center}.attack>div{flex:1;min-width:0}
.attack p{font-size:13px;color:var(--faint)}
.attack .big{min-width:2.6em;font-size:30px;color:var(--ink)}
.strip{display:flex;gap:10px;overflow-x:auto;padding:6px 0 10px}
.sides{display:flex;flex-direction:column;gap:6px;font-size:12px;color:var(--faint)}
.sides span{height:112px;display:flex;align-items:center;writing-mode:vertical-rl;
transform:rotate(180deg);justify-content:center}
figure{margin:0;width:112px;flex:none}
figcaption{font-size:11px;line-height:1.3;color:var(--faint);overflow-wrap:anywhere}
.shot{position:relative;display:block;margin-bottom:6px;overflow:hidden;border-radius:10px}
.shot img{width:112px;height:112px;object-fit:cover;display:block;transition:filter .2s}
.blurred .shot img{filter:blur(16px) saturate(.6)}
.dot{position:absolute;right:6px;top:6px;width:10px;height:10px;border-radius:50%;
border:2px solid #fff}.dot.yes{background:var(--bad)}.stays .dot.yes{background:var(--good)}
.dot.no{background:#9aa1ab66}
.switch{position:fixed;right:14px;top:12px;background:var(--card);border:1px solid var(--line);
border-radius:99px;padding:5px 12px;font-size:13px;z-index:2;cursor:pointer}
details{margin:.6em 0}summary{cursor:pointer;color:var(--faint);font-size:14px}
@media (max-width:600px){.wide{display:none}.attack{gap:12px}}
@media print{.switch{display:none}.strip{flex-wrap:wrap}}
"""

SCRIPT = (
    "document.getElementById('blur').addEventListener('change',"
    "e=>document.body.classList.toggle('blurred',e.target.checked));"
)
