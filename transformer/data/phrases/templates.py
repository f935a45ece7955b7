"""The templates of the generated phrases, as rows "English | German | French". An indented line continues a row.

(a/b) are alternatives: the n-th of all groups of a row together make one template. {kind} is a slot for a value of the
kind in `corpus.KINDS`, {kind2} a second slot of this kind, and {kind:form} a slot in a grammatical form of `wording`.
No text occurs twice in a language, so that a sentence has one translation. A text can't contain "/" or "(".
"""

TEMPLATES = {
    "numbers": """
(The answer/The result/The secret number/The sum) is {n}.
    | (Die Antwort/Das Ergebnis/Die geheime Zahl/Die Summe) ist {n}.
    | (La réponse/Le résultat/Le nombre secret/La somme) est {n}.
{who} (writes/says/chooses) the number {n}. | {who} (schreibt/nennt/wählt) die Zahl {n}.
    | {who} (écrit/dit/choisit) le nombre {n}.
{who} (adds/multiplies/divides) {n} (and/by/by) {n2}. | {who} (addiert/multipliziert/teilt) {n} (und/mit/durch) {n2}.
    | {who} (additionne/multiplie/divise) {n} (et/par/par) {n2}.
{who} (buys/sells/sees/finds/draws/brings/counts/hides) {items}.
    | {who} (kauft/verkauft/sieht/findet/zeichnet/bringt/zählt/versteckt) {items}.
    | {who} (achète/vend/voit/trouve/dessine/apporte/compte/cache) {items}.
{who} has (lost/ordered/forgotten) {items}. | {who} hat {items} (verloren/bestellt/vergessen).
    | {who} a (perdu/commandé/oublié) {items}.
{who} comes with {items}. | {who} kommt mit {items:dat}. | {who} vient avec {items}.
There are {things} (on the table/in the garden/in the kitchen/in the box).
    | (Auf dem Tisch/Im Garten/In der Küche/In der Kiste) sind {things}.
    | Il y a {things} (sur la table/dans le jardin/dans la cuisine/dans la boîte).
{who} is waiting (in room/on platform/at table) {label}. | {who} wartet (in Raum/auf Gleis/an Tisch) {label}.
    | {who} attend (dans la salle/sur le quai/à la table) {label}.
(The answer/The story/The map/The photo) is on page {label}.
    | (Die Antwort/Die Geschichte/Die Karte/Das Foto) ist auf Seite {label}.
    | (La réponse/L'histoire/La carte/La photo) est à la page {label}.
(Bus/Train/Flight) {label} is late. | (Bus/Zug/Flug) {label} hat Verspätung.
    | (Le bus/Le train/Le vol) {label} est en retard.
{who} is {age} years old. | {who} ist {age} Jahre alt. | {who} a {age} ans.
(The town/The village/The island/The region) has {big} inhabitants.
    | (Die Stadt/Das Dorf/Die Insel/Die Region) hat {big} Einwohner.
    | (La ville/Le village/L'île/La région) compte {big} habitants.
{big} (visitors/tourists/fans) have come to the festival. | {big} (Besucher/Touristen/Fans) sind zum Festival gekommen.
    | {big} (visiteurs/touristes/fans) sont venus au festival.
{who} reads the {nth} (chapter/letter/page). | {who} liest (das {nth:e} Kapitel/den {nth:en} Brief/die {nth:e} Seite).
    | {who} lit (le {nth} chapitre/la {nth:f} lettre/la {nth:f} page).
This is the {nth} (attempt/day/mistake/goal).
    | Das ist (der {nth:e} Versuch/der {nth:e} Tag/der {nth:e} Fehler/das {nth:e} Tor).
    | C'est (la {nth:f} tentative/le {nth} jour/la {nth:f} erreur/le {nth} but).
{who} finishes in {nth} place. | {who} belegt den {nth:en} Platz. | {who} termine à la {nth:f} place.
""",
    "dates": """
(Today is/Tomorrow is/Yesterday was) {date}. | (Heute ist/Morgen ist/Gestern war) der {date:e}.
    | (Nous sommes/Demain, nous serons/Hier, nous étions) le {date}.
{who} (was born/got married) on {date}. | {who} (wurde/hat) am {date} (geboren/geheiratet).
    | {who} (est né{who:e}/s'est marié{who:e}) le {date}.
(The concert/The exam/The match/The wedding) is on {date}.
    | (Das Konzert/Die Prüfung/Das Spiel/Die Hochzeit) ist am {date}.
    | (Le concert/L'examen/Le match/Le mariage) est le {date}.
(We meet/Our flight is/Our appointment is) on {fulldate}.
    | (Wir treffen uns/Unser Flug ist/Unser Termin ist) am {fulldate}.
    | (Nous nous retrouvons/Notre vol est/Notre rendez-vous est) le {fulldate}.
{who} (comes back/begins/leaves) on {date}. | {who} (kommt am {date} zurück/fängt am {date} an/fährt am {date} ab).
    | {who} (revient/commence/part) le {date}.
{who} has (lived here/worked here/been sick) since {date}.
    | {who} (wohnt seit dem {date} hier/arbeitet seit dem {date} hier/ist seit dem {date} krank).
    | {who} (habite ici/travaille ici/est malade) depuis le {date}.
(The offer/The ticket/The passport) is valid until {date}. | (Das Angebot/Die Fahrkarte/Der Pass) gilt bis zum {date}.
    | (L'offre/Le billet/Le passeport) est valable jusqu'au {date}.
Please (pay/answer) by {date}. | Bitte (zahlen/antworten) Sie bis zum {date}.
    | Veuillez (payer/répondre) avant le {date}.
{day} is (a holiday/an important day/a good day). | Der {day:e} ist (ein Feiertag/ein wichtiger Tag/ein guter Tag).
    | Le {day} est (un jour férié/un jour important/un bon jour).
(The shop/The museum/The library/The bank) is closed on {day}.
    | (Das Geschäft/Das Museum/Die Bibliothek/Die Bank) ist am {day} geschlossen.
    | (Le magasin est fermé/Le musée est fermé/La bibliothèque est fermée/La banque est fermée) le {day}.
(The course/The trip/The festival) lasts from {day} to {day2}.
    | (Der Kurs/Die Reise/Das Festival) dauert vom {day} bis zum {day2}.
    | (La formation/Le voyage/Le festival) dure du {day} au {day2}.
{who} moved to {country} in {year}. | {who} ist {year} {country:to} gezogen.
    | {who} s'est installé{who:e} {country:in} en {year}.
(The film/The book/The song/The painting) is from {year}.
    | (Der Film/Das Buch/Das Lied/Das Gemälde) ist aus dem Jahr {year}.
    | (Le film/Le livre/La chanson/Le tableau) date de {year}.
(The meeting/The exam/The election) is in {month} {year}. | (Die Sitzung/Die Prüfung/Die Wahl) ist im {month} {year}.
    | (La réunion/L'examen/L'élection) est en {month} {year}.
""",
    "times": """
It (is/is exactly/was) {time}. | Es (ist/ist genau/war) {time}. | Il (est/est exactement/était) {time}.
(The train/The bus/The last train/The first bus) leaves at {time}.
    | (Der Zug/Der Bus/Der letzte Zug/Der erste Bus) fährt um {time} ab.
    | (Le train/Le bus/Le dernier train/Le premier bus) part à {time}.
(The shop/The museum/The library/The bank) opens at {time}.
    | (Das Geschäft/Das Museum/Die Bibliothek/Die Bank) öffnet um {time}.
    | (Le magasin/Le musée/La bibliothèque/La banque) ouvre à {time}.
(The shop/The museum/The library/The bank) closes at {time}.
    | (Das Geschäft/Das Museum/Die Bibliothek/Die Bank) schließt um {time}.
    | (Le magasin/Le musée/La bibliothèque/La banque) ferme à {time}.
(The shop/The museum/The library/The bank) is open from {time} to {time2}.
    | (Das Geschäft/Das Museum/Die Bibliothek/Die Bank) ist von {time} bis {time2} geöffnet.
    | (Le magasin est ouvert/Le musée est ouvert/La bibliothèque est ouverte/La banque est ouverte) de {time} à {time2}.
{who} (gets up/goes to bed/has breakfast/eats/comes home/calls) at {time}.
    | {who} (steht/geht/frühstückt/isst/kommt/ruft) um {time}( auf/ ins Bett/// nach Hause/ an).
    | {who} (se lève/se couche/prend le petit déjeuner/mange/rentre/appelle) à {time}.
(The lesson/The film/The exam/The meeting) ends at {time}.
    | (Der Unterricht/Der Film/Die Prüfung/Die Sitzung) endet um {time}.
    | (Le cours/Le film/L'examen/La réunion) se termine à {time}.
{who} (works/sleeps/reads) from {time} to {time2}. | {who} (arbeitet/schläft/liest) von {time} bis {time2}.
    | {who} (travaille/dort/lit) de {time} à {time2}.
{who} has been (waiting/working/sleeping) since {time}. | {who} (wartet/arbeitet/schläft) seit {time}.
    | {who} (attend/travaille/dort) depuis {time}.
{who} (stays/works/waits) until {time}. | {who} (bleibt/arbeitet/wartet) bis {time}.
    | {who} (reste/travaille/attend) jusqu'à {time}.
(The alarm clock/The telephone/The bell) rings at {time}. | (Der Wecker/Das Telefon/Die Glocke) läutet um {time}.
    | (Le réveil/Le téléphone/La cloche) sonne à {time}.
(The meeting/The exam/The flight) has been moved to {time}.
    | (Die Sitzung/Die Prüfung/Der Flug) wurde auf {time} verschoben.
    | (La réunion a été déplacée/L'examen a été déplacé/Le vol a été déplacé) à {time}.
{who} (comes/works/sings) at {time} on {weekday}. | {who} (kommt/arbeitet/singt) am {weekday} um {time}.
    | {who} (vient/travaille/chante) {weekday} à {time}.
""",
    "money": """
{item} costs {money}. | {item} kostet {money}. | {item} coûte {money}.
{things} cost {money}. | {things} kosten {money}. | {things} coûtent {money}.
(The ticket/The coffee/The repair/The trip) costs {money}.
    | (Die Fahrkarte/Der Kaffee/Die Reparatur/Die Reise) kostet {money}.
    | (Le billet/Le café/La réparation/Le voyage) coûte {money}.
{who} pays {money} for {item}. | {who} zahlt {money} für {item:acc}. | {who} paie {money} pour {item}.
{who} has (bought/sold) {item} for {money}. | {who} hat {item:acc} für {money} (gekauft/verkauft).
    | {who} a (acheté/vendu) {item} pour {money}.
(The rent/The bill/The fine/The discount) is {money}. | (Die Miete/Die Rechnung/Das Bußgeld/Der Rabatt) beträgt {money}.
    | (Le loyer/La facture/L'amende/La remise) est de {money}.
The (price/price/rent/rent) (rises/falls/rises/falls) to {money}.
    | (Der Preis/Der Preis/Die Miete/Die Miete) (steigt/sinkt/steigt/sinkt) auf {money}.
    | Le (prix/prix/loyer/loyer) (monte/baisse/monte/baisse) à {money}.
{who} earns {money} a (day/week/month/year). | {who} verdient {money} (am Tag/in der Woche/im Monat/im Jahr).
    | {who} gagne {money} par (jour/semaine/mois/an).
{who} has (spent/saved/won/lost/found/donated) {money}.
    | {who} hat {money} (ausgegeben/gespart/gewonnen/verloren/gefunden/gespendet).
    | {who} a (dépensé/économisé/gagné/perdu/trouvé/donné) {money}.
{who} (owes/lends/gives/sends) {friend} {money}. | {who} (schuldet/leiht/gibt/schickt) {friend} {money}.
    | {who} (doit/prête/donne/envoie) {money} à {friend}.
I would like to (exchange/withdraw/deposit) {money}. | Ich möchte {money} (wechseln/abheben/einzahlen).
    | Je voudrais (changer/retirer/déposer) {money}.
{who} sends {money} to {country}. | {who} schickt {money} {country:to}. | {who} envoie {money} {country:in}.
That makes {money}, please. | Das macht {money}, bitte. | Cela fait {money}, s'il vous plaît.
""",
    "measures": """
(The river/The wall/The bridge/The street) is {length} long.
    | (Der Fluss/Die Mauer/Die Brücke/Die Straße) ist {length} lang.
    | (Le fleuve/Le mur/Le pont/La rue) fait {length} de long.
(The tower/The tree/The house/The mountain) is {height} high. | (Der Turm/Der Baum/Das Haus/Der Berg) ist {height} hoch.
    | (La tour/L'arbre/La maison/La montagne) fait {height} de haut.
It is {length} to (the station/the school/the beach/the airport).
    | Bis (zum Bahnhof/zur Schule/zum Strand/zum Flughafen) sind es {length}.
    | Il y a {length} jusqu'(à la gare/à l'école/à la plage/à l'aéroport).
{who} (runs/swims) {length}. | {who} (läuft/schwimmt) {length}. | {who} (court/nage) {length}.
(The suitcase/The dog/The parcel/The stone) weighs {mass}. | (Der Koffer/Der Hund/Das Paket/Der Stein) wiegt {mass}.
    | (La valise/Le chien/Le colis/La pierre) pèse {mass}.
{who} (buys/uses/sells/brings) {mass} of {food}. | {who} (kauft/verwendet/verkauft/bringt) {mass} {food}.
    | {who} (achète/utilise/vend/apporte) {mass} {food}.
{who} (drinks/buys/orders) {volume} of {drink}. | {who} (trinkt/kauft/bestellt) {volume} {drink}.
    | {who} (boit/achète/commande) {volume} {drink}.
It is {temperature} (outside/here/in the kitchen/in the garden).
    | (Draußen/Hier/In der Küche/Im Garten) sind es {temperature}.
    | Il fait {temperature} (dehors/ici/dans la cuisine/dans le jardin).
(The film/The concert/The lesson) lasts {duration}. | (Der Film/Das Konzert/Der Unterricht) dauert {duration}.
    | (Le film/Le concert/Le cours) dure {duration}.
(The trip/The course/The festival) lasts {period}. | (Die Reise/Der Kurs/Das Festival) dauert {period}.
    | (Le voyage/La formation/Le festival) dure {period}.
{who} has (waited/slept/worked) for {duration}. | {who} hat {duration} (gewartet/geschlafen/gearbeitet).
    | {who} a (attendu/dormi/travaillé) pendant {duration}.
{who} (comes back/begins) in {period}. | {who} (kommt/fängt) in {period:dat} (zurück/an).
    | {who} (revient/commence) dans {period}.
{who} (called/won/paid) {duration} ago. | {who} hat vor {duration:dat} (angerufen/gewonnen/bezahlt).
    | {who} a (appelé/gagné/payé) il y a {duration}.
{who} has been learning {language} for {period}. | {who} lernt seit {period:dat} {language}.
    | {who} apprend {language:the} depuis {period}.
{who} is staying in {country} for {period}. | {who} bleibt {period} {country:in}.
    | {who} reste {period} {country:in}.
(The car/The bus/The train/The truck) goes {speed}. | (Das Auto/Der Bus/Der Zug/Der Lastwagen) fährt {speed}.
    | (La voiture/Le bus/Le train/Le camion) roule à {speed}.
(The garden/The apartment/The island/The park) covers {area}.
    | (Der Garten/Die Wohnung/Die Insel/Der Park) ist {area} groß.
    | (Le jardin/L'appartement/L'île/Le parc) a une superficie de {area}.
(Prices/Rents/Wages) have (risen/fallen/risen) by {percent}.
    | (Die Preise/Die Mieten/Die Löhne) sind um {percent} (gestiegen/gesunken/gestiegen).
    | (Les prix/Les loyers/Les salaires) ont (augmenté/baissé/augmenté) de {percent}.
{percent} of the (women/men/guests) have answered. | {percent} der (Frauen/Männer/Gäste) haben geantwortet.
    | {percent} des (femmes/hommes/invités) ont répondu.
""",
    "names": """
{who} (lives/works/studies) in {country}. | {who} (lebt/arbeitet/studiert) {country:in}.
    | {who} (vit/travaille/étudie) {country:in}.
{who} (comes/returns) from {country}. | {who} (kommt/kehrt) {country:from}(/ zurück).
    | {who} (vient/revient) {country:from}.
{who} (loves/visits/leaves) {country}. | {who} (liebt/besucht/verlässt) {country:acc}.
    | {who} (aime/visite/quitte) {country:the}.
{who} (grew up/got married/spent the summer) in {country}.
    | {who} (ist/hat/hat den Sommer) {country:in} (aufgewachsen/geheiratet/verbracht).
    | {who} (a grandi/s'est marié{who:e}/a passé l'été) {country:in}.
{who} travels to {country} on {weekday}. | {who} reist am {weekday} {country:to}.
    | {who} part {weekday} pour {country:the}.
{who} travels from {country} to {country2}. | {who} reist {country:from} {country2:to}.
    | {who} voyage {country:from} {country2:in}.
{who} wants to (live/work/study) in {country}. | {who} möchte {country:in} (leben/arbeiten/studieren).
    | {who} veut (vivre/travailler/étudier) {country:in}.
The team from {country} has beaten the team from {country2}.
    | Die Mannschaft {country:from} hat die Mannschaft {country2:from} geschlagen.
    | L'équipe {country:from} a battu l'équipe {country2:from}.
{who} (speaks/learns/understands/teaches) {language}. | {who} (spricht/lernt/versteht/unterrichtet) {language}.
    | {who} (parle {language}/apprend {language:the}/comprend {language:the}/enseigne {language:the}).
{who} (answers/sings/writes) in {language}. | {who} (antwortet/singt/schreibt) auf {language}.
    | {who} (répond/chante/écrit) en {language}.
(The film/The book/The letter) is in {language}. | (Der Film/Das Buch/Der Brief) ist auf {language}.
    | (Le film/Le livre/La lettre) est en {language}.
{who} translates (the book/the letter/the song) from {language} into {language2}.
    | {who} übersetzt (das Buch/den Brief/das Lied) aus dem {language:en} ins {language2:e}.
    | {who} traduit (le livre/la lettre/la chanson) {language:from} en {language2}.
Do you speak {language} or {language2}? | Sprechen Sie {language} oder {language2}?
    | Parlez-vous {language} ou {language2} ?
How do you say that in {language}? | Wie sagt man das auf {language}? | Comment dit-on cela en {language} ?
""",
}
